"""The report of a small synthetic run: real stages, real measurements, an HTML parser as the reader."""

import json
import math
import random
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgaif_ray import storage
from fgaif_ray.config import Config, RewardComposition, load_config
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation.hallucination import Description, measure_descriptions
from fgaif_ray.evaluation.pope import STRATEGIES, build_questions, score_splits
from fgaif_ray.evaluation.rows import ANSWERS_SCHEMA
from fgaif_ray.feedback.agreement import agreement
from fgaif_ray.records import CLASS_NAMES, FACT_TYPES
from fgaif_ray.report.charts import Series, line_chart, nice_ticks
from fgaif_ray.report.examples import draw_examples, judge_examples
from fgaif_ray.report.page import build_report
from fgaif_ray.report.training import training_charts
from fgaif_ray.shapes.captions import CAPTION_PROMPTS, NO_ERRORS, POLICY_ERRORS, write_caption
from fgaif_ray.shapes.oracle import label_claims, read_claims
from fgaif_ray.shapes.render import render
from fgaif_ray.shapes.scenes import Scene, draw_scene
from jobs import report

HOSTILE = '</p><script>alert(1)</script><img src="https://example.org/x.png" onerror=alert(2)>'


class NoisyTruth:
    """A scorer that knows the truth of the scenes by their prompt's number, and is often unsure."""

    def __init__(self, scenes: Mapping[bytes, Scene]) -> None:
        self._scenes = scenes
        self._generator = np.random.default_rng(0)

    def score_types(self, fact_types, items):
        scores = {kind: [] for kind in fact_types}
        for item in items:
            text, spans = "", []
            for segment in item.segments:
                spans.append((len(text), len(text) + len(segment)))
                text += segment
            labels = [label_claims(self._scenes[item.image.tobytes()], claims) for claims in read_claims(text, spans)]
            for kind in fact_types:
                logits = self._generator.normal(0, 1.2, (len(labels), len(CLASS_NAMES)))
                for row, found in enumerate(labels):
                    logits[row, found[kind]] += 4
                shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
                scores[kind].append(shares.astype(np.float32))
        return scores


def publish(run_dir: Path, name: str, files: Mapping[str, Any], answers=(), **details) -> None:
    stage = storage.Stage(str(run_dir), name, f"{name}-of-the-test")
    stage.begin()
    for path, value in files.items():
        data = value if isinstance(value, str) else json.dumps(value)
        storage.write_bytes(storage.join(stage.partial, path), data.encode())
    if answers:
        storage.write_part(stage.partial, list(answers), ANSWERS_SCHEMA)
    stage.publish(details)


def agreement_figures(generator: random.Random, quality: float) -> dict[str, Any]:
    truth = generator.choices(range(3), weights=(5, 4, 2), k=1500)
    predicted = [code if generator.random() < quality else generator.randrange(3) for code in truth]
    return agreement(truth, predicted).to_dict()


def training_line(step: int, generator: random.Random) -> dict[str, Any]:
    done = 1 - math.exp(-step / 18)
    noise = generator.gauss
    return {
        "step": step,
        **{f"reward/{kind}": 0.4 + i * 0.3 + 1.1 * done + noise(0, 0.08) for i, kind in enumerate(FACT_TYPES)},
        "reward/total": 2.1 + 3.3 * done + noise(0, 0.15),
        **{f"hallucination/{kind}": 0.35 - 0.26 * done + noise(0, 0.02) for kind in FACT_TYPES},
        "facts/per_response": 7.5 - 0.4 * done + noise(0, 0.2),
        "kl/per_response": 6 * done + noise(0, 0.4),
        "response/length": 46 - 3 * done + noise(0, 1),
        "response/stopped_share": 1.0,
        "policy/entropy": 1.1 - 0.5 * done + noise(0, 0.02),
        "policy/clip_share": 0.08 + noise(0, 0.01),
        "critic/clip_share": 0.03 + noise(0, 0.01),
        "critic/explained_variance_before": None if step == 0 else -3 * (1 - done) + 0.6 * done + noise(0, 0.05),
        "rollout/log_prob_difference": abs(noise(0, 0.002)),
        "timing/step": 6.2 + noise(0, 0.3),
        "timing/rollout": 2.1 + noise(0, 0.2),
        "timing/update": 2.9 + noise(0, 0.1),
        "timing/reward": 0.7 + noise(0, 0.05),
        "timing/reference": 0.8 + noise(0, 0.05),
        "timing/sync": 0.2,
        "count/responses": 128.0,
        "count/tokens": 5800.0,
    }


def answer_row(which: str, task: str, image: str, prompt: str, response: str) -> dict[str, Any]:
    return {
        "id": f"{which}/{task}/{image}/{prompt}",
        "which": which,
        "task": task,
        "image": image,
        "prompt": prompt,
        "temperature": 1.0,
        "max_tokens": 64,
        "seed": 0,
        "response": response,
        "tokens": len(response.split()),
        "finish_reason": "stop",
    }


def evaluate_captions(
    run_dir: Path, images: int, before: str | None
) -> tuple[list[dict[str, Any]], dict[str, Scene], Any]:
    """Rows, truth and metrics of captions with many errors before and few after."""
    generator = random.Random(1)
    truth: dict[str, Scene] = {}
    rows = []
    for index in range(images):
        scene = draw_scene("heldout", index)
        path = run_dir / "images" / f"heldout-{index:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        render(scene).save(path)
        truth[str(path)] = scene
        prompt = CAPTION_PROMPTS[index % 4]
        for task in ("sampled", "greedy"):
            wrong = before or write_caption(scene, POLICY_ERRORS, generator)
            fewer = write_caption(scene, POLICY_ERRORS if generator.random() < 0.2 else NO_ERRORS, generator)
            rows.append(answer_row("before", task, str(path), prompt, wrong))
            rows.append(answer_row("after", task, str(path), prompt, fewer))
    objects = {path: [item.shape for item in scene.objects] for path, scene in truth.items()}
    splits = {strategy: build_questions(objects, strategy) for strategy in STRATEGIES}
    metrics: dict[str, Any] = {"images": images, "confidence": 0.95, "seconds": 41.0}
    for which, accuracy in (("before", 0.8), ("after", 0.86)):
        for task in ("greedy", "sampled"):
            found = [
                Description(row["image"], truth[row["image"]], row["response"], True)
                for row in rows
                if (row["which"], row["task"]) == (which, task)
            ]
            figures = measure_descriptions(found)
            metrics[which] = figures | metrics.get(which, {}) if task == "sampled" else {"greedy": figures}
        answers = {
            (q.image, q.text): "Yes" if q.label == (generator.random() < accuracy) else "No"
            for split in splits.values()
            for q in split
        }
        metrics[which]["pope"] = score_splits(splits, answers)
    return rows, truth, metrics


def write_run(run_dir: Path, images: int = 40, before: str | None = None) -> None:
    """A finished run in a folder, all but the report; ``before`` replaces what was said before."""
    generator = random.Random(2)
    rows, _, metrics = evaluate_captions(run_dir, images, before)
    publish(run_dir, "evaluation", {"metrics.json": metrics}, rows, rows=len(rows))
    labels = {
        "rows": 1000,
        "segments": 5200,
        "facts": {"existence": 3100, "attribute": 3600, "relation": 900},
        "agreement": {kind: agreement_figures(generator, 0.97) for kind in FACT_TYPES},
        "extraction": {"calls": 5200, "prompt_tokens": 312000, "completion_tokens": 121000},
        "seconds": 118.2,
    }
    publish(run_dir, "feedback", {"metrics.json": labels})
    publish(
        run_dir,
        "rewards",
        {
            f"{kind}/metrics.json": agreement_figures(generator, 0.93)
            | {"expected_calibration_error": 0.021, "curve": [{}] * 5, "seconds": 31.0}
            for kind in FACT_TYPES
        },
    )
    lines = [json.dumps(training_line(step, generator)) for step in range(60)]
    publish(run_dir, "policy", {"metrics.jsonl": "\n".join(lines) + "\n"})
    publish(run_dir, "responses", {}, rows=1000, seconds=38.0)
    storage.write_json(
        f"{run_dir}/timing.json",
        {"images": 6.1, "sample": 38.4, "label": 118.2, "train_rewards": 95.0, "align": 402.7, "evaluate": 71.3},
    )


def write_examples(run_dir: Path, title: str = "A run", count: int = 12, images: int = 40) -> None:
    """The report's own stage, scored by ``NoisyTruth``."""
    drawn = draw_examples(storage.read_rows(f"{run_dir}/evaluation"), count, 0)
    truth = {str(run_dir / "images" / f"heldout-{i:06d}.png"): draw_scene("heldout", i) for i in range(images)}
    scorer = NoisyTruth({render(scene).tobytes(): scene for scene in truth.values()})
    judged = judge_examples(drawn, truth, scorer, RewardComposition())
    shown = {
        "title": title,
        "policy": "checkpoints/policy",
        "steps": 60,
        "verdicts_by_truth": True,
        "config": f"run:\n  dir: {run_dir}\n",
    }
    publish(run_dir, "report", {"examples.json": judged, "settings.json": shown})


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
        assert f"{100 * metrics[which]['hallucination_rate']['overall']:.1f}\u2009%" in page.text
        assert f"{100 * metrics[which]['pope']['f1']:.1f}" in " ".join(page.text)


def test_every_section_has_a_link_that_leads_to_it(page):
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == [f"#{name}" for name in sections]
    assert set(sections) == {"result", "pope", "examples", "training", "labels", "rewards", "run"}


def test_each_example_has_its_image_and_coloured_sub_sentences_on_both_sides(page):
    assert len(page.named("article", "example")) == 12
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 12
    assert len(page.named("div", "side")) == 24
    assert page.named("span", "hallucinated") and page.named("span", "consistent")


def test_a_curve_is_drawn_for_every_panel_with_figures(page):
    assert len(page.named("svg", "chart")) == 11


def test_hostile_text_stays_text(tmp_path):
    write_run(tmp_path, images=3, before=HOSTILE)
    write_examples(tmp_path, title=HOSTILE, count=3, images=3)
    page = Page(build_report(str(tmp_path)))
    assert "script" not in [tag for tag, _ in page.tags]
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert any("<script>alert(1)</script>" in text for text in page.text)


def test_images_without_a_truth_are_judged_by_the_reward_models(tmp_path):
    write_run(tmp_path, images=4)
    metrics = {
        "images": 4,
        "note": "The truth of these images is not known.",
        **{which: {"words_per_response": 9.0, "greedy": {"words_per_response": 8.0}} for which in ("before", "after")},
    }
    storage.write_json(f"{tmp_path}/evaluation/metrics.json", metrics)
    storage.write_json(f"{tmp_path}/feedback/metrics.json", {"rows": 4, "agreement": None})
    write_examples(tmp_path, images=4)
    examples = storage.read_json(f"{tmp_path}/report/examples.json")
    for side in (example[which] for example in examples for which in ("before", "after")):
        for segment in side["segments"]:
            segment["labels"] = None
    storage.write_json(f"{tmp_path}/report/examples.json", [example | {"truth": None} for example in examples])
    page = Page(build_report(str(tmp_path)))
    assert "The truth of these images is not known." in page.text
    assert page.named("span", "consistent")
    assert "labels" not in [attributes["id"] for tag, attributes in page.tags if tag == "section"]


def test_a_response_that_cannot_be_scored_keeps_the_verdicts_of_the_truth(tmp_path):
    write_run(tmp_path, images=2)

    class Refuses:
        def score_types(self, fact_types, items):
            raise ValueError("the response takes 5000 tokens, the backbone reads 1024")

    drawn = draw_examples(storage.read_rows(f"{tmp_path}/evaluation"), 2, 0)
    truth = {str(tmp_path / "images" / f"heldout-{i:06d}.png"): draw_scene("heldout", i) for i in range(2)}
    segments = judge_examples(drawn, truth, Refuses(), RewardComposition())[0]["before"]["segments"]
    assert all(segment["probabilities"] is None and segment["labels"] is not None for segment in segments)


def test_examples_are_drawn_by_the_seed(finished_run):
    rows = list(storage.read_rows(f"{finished_run}/evaluation"))
    assert draw_examples(rows, 5, 1) == draw_examples(list(reversed(rows)), 5, 1)
    assert draw_examples(rows, 5, 1) != draw_examples(rows, 5, 2)


def test_a_run_without_training_figures_has_no_charts(tmp_path):
    assert training_charts(str(tmp_path)) == []


def test_a_chart_of_nothing_is_none():
    assert line_chart("empty", [Series("none", [0, 1], [None, math.nan], "ink")]) is None


@settings(max_examples=60, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_span_the_values_in_even_steps(low, width):
    ticks = nice_ticks(low, low + width)
    steps = np.diff(ticks)
    assert ticks[0] <= low + 1e-6 * width and ticks[-1] >= low + width * (1 - 1e-6)
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
                assert place is None or -1 <= float(place) <= 381


def configure(repository: Path, folder: Path) -> Config:
    checkpoint = f"{repository}/fgaif_ray/shapes/checkpoints/annotator"
    return load_config(
        repository / "configs" / "shapes.yaml",
        [
            f"run.dir={folder}",
            f"rewards.backbone={checkpoint}",
            "data.sample_images=1",
            "data.align_images=1",
            "data.evaluate_images=5",
            "report.examples=3",
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
    from fgaif_ray.models.backbone import load_backbone
    from fgaif_ray.models.reward_model import RewardModel

    config = configure(repository, tmp_path).model_copy(deep=True)
    write_run(tmp_path, images=5)
    model = RewardModel(load_backbone(config.rewards.backbone))
    for kind in FACT_TYPES:
        model.add(kind, LoRAOptions(rank=2), seed=0)
        model.save(kind, tmp_path / "rewards" / kind)

    report.run(config)
    page = Page((tmp_path / "report.html").read_text())
    assert len(page.named("article", "example")) == 3
    assert page.named("small", "reward")

    capsys.readouterr()
    report.run(config)
    assert "scoring" not in capsys.readouterr().out
