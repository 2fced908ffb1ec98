"""The report of a small synthetic run: real stages, real measurements, an HTML parser as the reader."""

import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.report_run import publish, reward_figures, write_examples, write_run

from benchmarks import PAPER_SETUP
from fgaif_ray import storage
from fgaif_ray.config import Config, ReportConfig, RewardComposition, load_config
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation.rows import EvaluationAnswer
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.report import cost, result
from fgaif_ray.report.charts import Series, line_chart, nice_ticks, smooth
from fgaif_ray.report.examples import choose_examples, judge_examples, pair_answers, rank_examples
from fgaif_ray.report.formats import show_change
from fgaif_ray.report.page import build_report
from fgaif_ray.report.summary import summary_table
from fgaif_ray.report.training import training_charts
from fgaif_ray.report.verdicts import cards, reliability_chart
from fgaif_ray.shapes.scenes import draw_scene
from jobs import report


class Page(HTMLParser):
    """What a reader of the page finds: its tags, the text by tag, and whether every tag is closed."""

    VOID = frozenset({"meta", "img", "link", "br", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open[-1] not in ("style", "script"):
            self.text.append(data.strip())

    def named(self, tag: str, css_class: str) -> list[dict[str, str | None]]:
        return [
            attributes
            for name, attributes in self.tags
            if name == tag and css_class in (attributes.get("class") or "").split()
        ]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    write_examples(folder)
    return folder


@pytest.fixture(scope="module")
def page(finished_run):
    return Page(build_report(str(finished_run)))


def test_every_tag_is_closed(page):
    assert page.open == []


def test_the_page_loads_nothing(page):
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "srcset", "data", "href", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#"))
        assert "url(" not in (attributes.get("style") or "")


def test_a_policy_in_the_page_forbids_requests(page):
    (content,) = [
        attributes["content"]
        for tag, attributes in page.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert content == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_the_measured_rates_are_shown(finished_run, page):
    metrics = storage.read_json(f"{finished_run}/evaluation/metrics.json")
    for which in ("before", "after"):
        assert f"{100 * metrics[which]['hallucination_rate']['overall']:.1f}\u202f%" in page.text
        assert f"{100 * metrics[which]['pope']['f1']:.1f}" in " ".join(page.text)


def test_every_section_has_a_link_that_leads_to_it(page):
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == ["#result", *(f"#{name}" for name in sections)]  # the first skips to the result
    assert set(sections) == {"result", "examples", "training", "rewards", "labels", "pope", "cost", "settings"}


def test_each_example_has_its_image_and_coloured_sub_sentences_on_both_sides(page):
    examples = len(page.named("article", "example"))
    assert 12 < examples <= 18
    assert len([tag for tag, _ in page.tags if tag == "img"]) == examples
    assert len(page.named("div", "side")) == 2 * examples
    assert page.named("li", "hallucinated") and page.named("li", "consistent")


def test_every_sub_sentence_has_probability_and_reward_of_each_type(finished_run, page):
    examples = storage.read_json(f"{finished_run}/report/examples.json")
    segments = sum(len(one[which]["segments"]) for one in examples for which in ("before", "after"))
    assert len(page.named("span", "odds")) == segments * len(FACT_TYPES)


def test_a_curve_is_drawn_for_every_panel_with_figures(page):
    assert len(page.named("svg", "chart")) == 11


def test_each_reward_model_has_a_reliability_diagram_that_says_its_points(page):
    diagrams = page.named("svg", "reliability")
    assert len(diagrams) == 3
    assert all("after temperature scaling: sure" in diagram["aria-label"] for diagram in diagrams)


def test_every_picture_has_words(page):
    for tag, attributes in page.tags:
        if tag == "img":
            assert attributes["alt"]
        if attributes.get("role") == "img":
            assert attributes["aria-label"]


def test_headings_leave_no_level_out(page):
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3", "h4", "h5")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_every_table_has_headers_with_a_scope(page):
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")


def test_images_without_a_truth_are_judged_by_the_reward_models(tmp_path):
    write_run(tmp_path, images=4)
    metrics = {
        "images": 4,
        "note": "The truth of these images is not known.",
        **{which: {"words_per_response": 9.0, "greedy": {"words_per_response": 8.0}} for which in ("before", "after")},
    }
    storage.write_json(f"{tmp_path}/evaluation/metrics.json", metrics)
    storage.write_json(f"{tmp_path}/feedback/metrics.json", {"rows": 4, "agreement": None})
    write_examples(tmp_path, images=4, count=2, known=False)
    page = Page(build_report(str(tmp_path)))
    assert "The truth of these images is not known." in page.text
    assert page.named("li", "consistent")
    assert "labels" not in [attributes["id"] for tag, attributes in page.tags if tag == "section"]


def test_a_response_that_cannot_be_scored_keeps_the_verdicts_of_the_truth(tmp_path):
    write_run(tmp_path, images=2)

    class Refuses:
        def encode(self, item):
            raise ValueError("the response takes 5000 tokens, the backbone reads 1024")

    drawn = pair_answers(map(EvaluationAnswer.from_row, storage.read_rows(f"{tmp_path}/evaluation")))
    truth = {str(tmp_path / "images" / f"heldout-{i:06d}.png"): draw_scene("heldout", i) for i in range(2)}
    segments = judge_examples(drawn, truth, Refuses(), RewardComposition())[0].before.segments
    assert all(segment.probabilities is None and segment.labels is not None for segment in segments)


class Unread:
    """Reward models that read nothing."""

    def encode(self, item):
        raise ValueError("too long")


def chosen(run_dir: Path, seed: int, reverse: bool = False) -> list[tuple[str, str]]:
    rows = [EvaluationAnswer.from_row(row) for row in storage.read_rows(f"{run_dir}/evaluation")]
    truth = {str(run_dir / "images" / f"heldout-{i:06d}.png"): draw_scene("heldout", i) for i in range(40)}
    options = ReportConfig(examples=5, extremes=2)
    judged = choose_examples(rows[:: -1 if reverse else 1], truth, Unread(), RewardComposition(), options, seed)
    return [(one.group, one.name) for one in judged]


def test_examples_are_drawn_by_the_seed_and_none_is_shown_twice(finished_run):
    found = chosen(finished_run, 1)
    assert found == chosen(finished_run, 1, reverse=True)
    assert found != chosen(finished_run, 2)
    assert [group for group, _ in found] == ["drawn"] * 5 + ["mended"] * 2 + ["worst"] * 2
    assert len({name for _, name in found}) == 9


def test_the_most_improved_have_gained_and_the_worst_are_wrong():
    standings = [
        {"before": (1, 4), "after": (5, 0)},  # gains 8
        {"before": (3, 0), "after": (3, 0)},  # neither
        {"before": (2, 1), "after": (2, 6)},  # worst
        {"before": (1, 1), "after": (3, 1)},  # gains 2, and has one wrong
        {"before": (0, 9), "after": (1, 7)},  # worst, though it gained
    ]
    assert rank_examples(standings, 2) == ([0, 3], [4, 2])


def test_what_got_worse_is_named_where_the_intervals_do_not_touch():
    def side(value, low, high):
        return {"repetition": value, "intervals": {"repetition": [low, high]}}

    assert result.worse({"before": side(0.1, 0.05, 0.15), "after": side(0.3, 0.2, 0.4)}) == [
        "repeated statements, sampled: 10.0\u202f% \u2192 30.0\u202f%, +20.0\u202fpoints"
    ]
    assert result.worse({"before": side(0.1, 0.05, 0.25), "after": side(0.3, 0.2, 0.4)}) == []
    assert result.worse({"before": side(0.3, 0.2, 0.4), "after": side(0.1, 0.05, 0.15)}) == []


def test_what_got_worse_is_named_where_the_interval_of_the_change_leaves_out_zero():
    def evaluation(low, high):
        sides = {which: {"repetition": value} for which, value in (("before", 0.1), ("after", 0.3))}
        return sides | {"changes": {"sampled": {"repetition": {"value": 0.2, "interval": [low, high]}}}}

    assert result.worse(evaluation(0.1, 0.25)) == [
        "repeated statements, sampled: 10.0\u202f% \u2192 30.0\u202f%, +20.0\u202fpoints (95\u202f%: +10.0 to +25.0)"
    ]
    assert result.worse(evaluation(-0.01, 0.25)) == []


@pytest.mark.parametrize(
    ("good", "interval", "kind"),
    [(-1, [0.1, 0.3], "bad"), (1, [0.1, 0.3], "good"), (0, [0.1, 0.3], "neutral"), (-1, [-0.1, 0.3], "neutral")],
)
def test_a_change_is_coloured_only_where_its_interval_leaves_out_zero(good, interval, kind):
    assert show_change({"value": 0.2, "interval": interval}, good, "share")["kind"] == kind


def test_a_change_of_a_share_is_in_points_with_its_interval():
    shown = show_change({"value": -0.1234, "interval": [-0.2, 0.05]}, -1, "share")
    assert (shown["text"], shown["bounds"]) == ("\u221212.3\u202fpoints", "\u221220.0 to +5.0")


def test_the_report_opens_with_greedy_beside_sampled(page):
    heads = [name for name in page.text if name in ("greedy", "sampled at T = 1", "What got worse")]
    assert heads[:2] == ["greedy", "sampled at T = 1"]
    rows = ["Hallucinated segments", *(f"hallucinated, {kind}" for kind in FACT_TYPES)]
    rows += ["Coverage of the truth", "Segments without a statement", "Words per response"]
    start = page.text.index(rows[0])
    assert [text for text in page.text[start:] if text in rows][: len(rows)] == rows


def test_the_opening_table_has_the_changes_of_both(finished_run, page):
    changes = storage.read_json(f"{finished_run}/evaluation/metrics.json")["changes"]
    for task in ("greedy", "sampled"):
        shown = show_change(changes[task]["hallucination_rate"]["overall"], -1, "share")
        assert shown["text"] in page.text
        assert f"better, {shown['bounds']}" in page.text


def test_no_change_is_relative(page):
    assert [text for text in page.text if re.search(r"[+\u2212-]\d+\s?%", text)] == []


def test_an_evaluation_without_intervals_of_changes_is_shown_uncoloured(tmp_path):
    write_run(tmp_path, images=4)
    metrics = storage.read_json(f"{tmp_path}/evaluation/metrics.json")
    del metrics["changes"]
    storage.write_json(f"{tmp_path}/evaluation/metrics.json", metrics)
    write_examples(tmp_path, images=4, count=2)
    page = Page(build_report(str(tmp_path)))
    changes = page.named("span", "change")
    assert changes and all("neutral" in attributes["class"].split() for attributes in changes)
    assert any("has no intervals of changes" in text for text in page.text)


def test_the_console_shows_changes_in_points_with_intervals(finished_run):
    metrics = storage.read_json(f"{finished_run}/evaluation/metrics.json")
    lines = summary_table({"alignment": metrics}).splitlines()
    sampled = lines.index(next(line for line in lines if line.startswith("sampled")))
    (line,) = [line for line in lines[sampled:] if line.startswith("hallucination, overall")]
    assert re.search(r"% +-\d+\.\d points \[-\d+\.\d to -\d+\.\d\]$", line)


def test_the_console_shows_greedy_first_then_sampled(finished_run):
    metrics = storage.read_json(f"{finished_run}/evaluation/metrics.json")
    lines = summary_table({"alignment": metrics}).splitlines()
    shown = [line.split("  ")[0] for line in lines if re.match("greedy|sampled|hallucination, overall", line)]
    assert shown == ["greedy", "hallucination, overall", "sampled at T = 1", "hallucination, overall"]
    after = [metrics["after"]["greedy"], metrics["after"]]
    for line, figures in zip([line for line in lines if line.startswith("hallucination, overall")], after, strict=True):
        assert f"{100 * figures['hallucination_rate']['overall']:.1f} %" in line


def test_a_reward_model_of_whole_responses_is_shown_once():
    figures = reward_figures(0) | {"granularity": "response"}
    (card,) = cards(dict.fromkeys(FACT_TYPES, figures), FACT_TYPES)
    assert (card["type"], card["unit"]) == ("whole response", "responses")


def test_figures_of_an_older_run_have_no_diagram():
    figures = {name: value for name, value in reward_figures(0).items() if not name.startswith("reliability")}
    assert cards({"existence": figures}, FACT_TYPES)[0]["diagram"] is None


def test_a_point_of_a_reliability_diagram_lies_at_its_confidence_and_accuracy():
    page = Page(reliability_chart("existence", [{"count": 4, "confidence": 0.5, "accuracy": 1.0}]))
    (point,) = page.named("circle", "raw-point")
    diagonal = page.named("line", "diagonal")[0]
    left, right = float(diagonal["x1"]), float(diagonal["x2"])
    assert float(point["cx"]) == (left + right) / 2 and float(point["cy"]) == float(diagonal["y2"])


def test_the_ledger_is_told_with_its_price(tmp_path):
    ledger = {"calls": 12, "answered": 11, "failed": 1, "retries": 0, "prompt_tokens": 3000, "completion_tokens": 400,
              "may_be_billed": {"calls": 1}, "money": 1.5, "currency": "EUR"}  # fmt: skip
    storage.write_json(f"{tmp_path}/feedback/ledger.json", ledger)
    found = dict(cost.ledger(str(tmp_path), {}))
    assert found["price of the answers"] == "1.50\u202fEUR" and found["failed"] == "1"
    assert "repeated after a failure" not in found
    assert {"Extraction", "Price"} == {tile["name"] for tile in cost.tiles(str(tmp_path), [], {})}


def test_what_is_left_of_a_step_is_told_unless_phases_overlap():
    assert [one["name"] for one in cost.phases([{"timing/step": 3.0, "timing/rollout": 2.0}])] == ["rollout", "other"]
    assert [one["name"] for one in cost.phases([{"timing/step": 3.0, "timing/rollout": 4.0}])] == ["rollout"]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=200))
def test_the_moving_average_stays_within_the_figures(values):
    assert all(min(values) - 1e-6 <= value <= max(values) + 1e-6 for value in smooth(values))


def test_a_run_without_training_figures_has_no_charts(tmp_path):
    assert training_charts(str(tmp_path), FACT_TYPES) == []


def test_evaluations_while_training_are_the_first_charts(tmp_path):
    lines = [
        {"step": 0, "evaluation/truth/coverage": 0.8, "evaluation/hallucination/overall": 0.3},
        {"step": 1, "reward/total": 1.0},
        {"step": 2, "reward/total": 2.0, "evaluation/truth/coverage": 0.7, "evaluation/hallucination/overall": 0.1},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    charts = training_charts(str(tmp_path), FACT_TYPES)
    titles = [chart["title"] for chart in charts]
    assert titles[:2] == ["Held-out images, greedy, by the truth", "Held-out images, greedy, by the reward models"]
    assert [one["ends"] for one in charts[0]["legend"]] == ["0.8 \u2192 0.7"]
    assert titles[2] == "Reward"


def test_the_page_says_which_policy_is_published(tmp_path):
    write_run(tmp_path, images=4)
    write_examples(tmp_path, images=4, count=2)
    manifest = tmp_path / "policy" / "_manifest.json"
    best = {"step": 20, "metric": "truth/coverage", "value": 0.81}
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"best": best}))
    text = " ".join(Page(build_report(str(tmp_path))).text)
    assert "Published is the policy of step 20, the best of the evaluations by truth/coverage (0.81)" in text


def test_a_chart_of_nothing_is_none():
    assert line_chart("empty", [Series("none", [0, 1], [None, math.nan], "ink")]) is None


@settings(max_examples=60, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_span_the_values_in_even_steps(low, width):
    ticks = nice_ticks(low, low + width)
    steps = np.diff(ticks)
    slack = 1e-6 * width + 1e-12 * abs(low)  # of floats
    assert ticks[0] <= low + slack and ticks[-1] >= low + width - slack
    assert len(ticks) >= 2 and np.allclose(steps, steps[0], rtol=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=True, width=32)), min_size=1, max_size=600))
def test_any_figures_give_a_well_formed_chart_inside_its_frame(values):
    chart = line_chart("any", [Series("a", list(range(len(values))), values, "ink")], zero=True)
    if chart is not None:
        page = Page(chart)
        assert page.open == []
        for _, attributes in page.tags:
            for place in (attributes.get("cx"), attributes.get("cy")):
                assert place is None or -1 <= float(place) <= 481


def configure(repository: Path, folder: Path) -> Config:
    checkpoint = f"{repository}/fgaif_ray/shapes/checkpoints/annotator"
    return load_config(
        repository / "configs" / "shapes.yaml",
        [
            *PAPER_SETUP,
            f"run.dir={folder}",
            f"rewards.backbone={checkpoint}",
            "data.sample_images=1",
            "data.align_images=1",
            "data.evaluate_images=5",
            "report.examples=3",
            "report.extremes=0",
        ],
    )


@pytest.mark.parametrize(
    ("missing", "job"),
    [("feedback", "label"), ("rewards", "train_rewards"), ("policy", "align"), ("evaluation", "evaluate")],
)
def test_the_job_names_the_stage_that_is_missing(repository, tmp_path, missing, job):
    for name in ("feedback", "rewards", "policy", "evaluation"):
        if name != missing:
            publish(tmp_path, name, {})
    with pytest.raises(UserError, match=rf"jobs\.{job}\b"):
        report.run(configure(repository, tmp_path))


def test_the_job_scores_examples_with_the_reward_models_and_writes_the_page(repository, tmp_path, capsys):
    from fgaif_ray.config import LoRAOptions
    from fgaif_ray.rewards.model import RewardModel
    from fgaif_ray.rewards.model_files import save_reward_model
    from fgaif_ray.vlm.backbone import load_backbone

    config = configure(repository, tmp_path).model_copy(deep=True)
    write_run(tmp_path, images=5)
    model = RewardModel(load_backbone(config.rewards.backbone))
    for kind in FACT_TYPES:
        model.add(kind, LoRAOptions(rank=2), seed=0)
        save_reward_model(model, kind, tmp_path / "rewards" / kind)

    report.run(config)
    page = Page((tmp_path / "report.html").read_text())
    assert len(page.named("article", "example")) == 3
    assert page.named("span", "reward")

    capsys.readouterr()
    report.run(config)
    assert "scoring" not in capsys.readouterr().out
