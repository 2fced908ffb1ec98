"""The audit: its sample, its page in a real browser, the answers of both kinds, and what is made of them."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from browser import Browser, open_browser
from hypothesis import given, settings
from hypothesis import strategies as st

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.feedback.audit import Audit, AuditSampler, cell_weights
from fgaif_ray.feedback.audit_agreement import compare
from fgaif_ray.feedback.audit_page import build_page, load_pictures
from fgaif_ray.feedback.human import HumanAnswer, majority_labels, read_answers
from fgaif_ray.feedback.label_studio import CHOICES, LABELLING_CONFIG
from fgaif_ray.images import load_image
from fgaif_ray.records import CLASS_NAMES, CONSISTENT, FACT_TYPES, FEEDBACK_SCHEMA, HALLUCINATED
from fgaif_ray.shapes.render import render
from fgaif_ray.shapes.scenes import draw_scene
from jobs import label_audit
from jobs.cli import main

HOSTILE = "</script><script>document.title = 'taken'</script><!--<img src=x onerror=alert(1)> \u2028 😀 "


def feedback_row(number: int, image: str, segments: list[tuple[str, tuple[int, int, int]]]) -> dict[str, Any]:
    """A labelled response; each label has a fact of its type that the AI judged so."""
    parts, start = [], 0
    for text, labels in segments:
        named = dict(zip(FACT_TYPES, labels, strict=True))
        facts = [
            {"type": name, "text": f"{name} of {text.strip()}", "p_consistent": 0.5, "consistent": code == CONSISTENT}
            for name, code in named.items()
            if code
        ]
        parts.append({"start": start, "end": start + len(text), "text": text, "facts": facts, "labels": named})
        start += len(text)
    return {
        "sample_id": hashlib.sha256(str(number).encode()).hexdigest(),
        "image": image,
        "image_sha256": hashlib.sha256(image.encode()).hexdigest(),
        "prompt": "What is there?",
        "response": "".join(text for text, _ in segments),
        "token_ids": None,
        "finish_reason": "stop",
        "model": "policy",
        "segments": parts,
        "annotator": "{}",
    }


def many_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        segments = []
        for index in range(4):
            labels = tuple(generator.choices((0, 1, 2), (10, 10, 1))[0] for _ in FACT_TYPES)
            segments.append((f"Words {number} {index}. ", labels))
        rows.append(feedback_row(number, f"{number % 200}.png", segments))
    return rows


def draw(rows: list[dict[str, Any]], count: int, seed: int = 0) -> Audit:
    sampler = AuditSampler(count, seed)
    for row in rows:
        sampler.offer(row)
    return sampler.collect(rows)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return many_rows(300)


class TestSample:
    def test_rare_labels_are_drawn_as_often_as_there_are_enough(self, rows: list[dict[str, Any]]) -> None:
        for labels in draw(rows, 90).strata().values():
            assert labels["hallucinated"]["drawn"] >= 25

    def test_the_order_of_rows_makes_no_difference(self, rows: list[dict[str, Any]]) -> None:
        shuffled = random.Random(1).sample(rows, len(rows))
        assert draw(rows, 40) == draw(shuffled, 40)

    def test_another_seed_draws_others(self, rows: list[dict[str, Any]]) -> None:
        assert draw(rows, 40, seed=0).id != draw(rows, 40, seed=1).id

    def test_images_are_spread(self, rows: list[dict[str, Any]]) -> None:
        assert max(Counter(item.image for item in draw(rows, 60).items).values()) <= 2

    def test_nothing_is_drawn_twice(self, rows: list[dict[str, Any]]) -> None:
        items = draw(rows, 200).items
        assert len({(item.sample_id, item.segment) for item in items}) == len(items) == 200

    def test_a_small_set_is_drawn_whole(self) -> None:
        assert len(draw(many_rows(3), 50).items) == 12

    def test_the_sample_survives_json(self, rows: list[dict[str, Any]]) -> None:
        audit = draw(rows, 20)
        assert Audit.from_dict(json.loads(json.dumps(audit.to_dict()))) == audit

    def test_labels_that_noise_turned_are_drawn_as_the_ai_gave_them(self) -> None:
        row = feedback_row(0, "a.png", [("A dog.", (1, 0, 0))])
        row["segments"][0] |= {"ai_labels": {"existence": 2, "attribute": 0, "relation": 0}}
        assert draw([row], 1).items[0].labels["existence"] == HALLUCINATED

    @pytest.mark.parametrize("count", [0, -3])
    def test_a_sample_of_nothing_is_refused(self, count: int) -> None:
        with pytest.raises(UserError, match="at least 1"):
            AuditSampler(count, 0)

    def test_a_run_without_sub_sentences_is_refused(self) -> None:
        with pytest.raises(UserError, match="no labelled sub-sentence"):
            AuditSampler(1, 0).collect([])

    @given(st.lists(st.sampled_from([(0, 0, 0), (1, 0, 0), (2, 1, 0)]), min_size=1, max_size=30))
    @settings(deadline=None)
    def test_weights_restore_the_shares_of_the_population(self, cells: list[tuple[int, int, int]]) -> None:
        population = {(0, 0, 0): 70, (1, 0, 0): 25, (2, 1, 0): 5}
        weights = cell_weights(cells, population)
        assert sum(weights) == pytest.approx(len(cells))
        total = sum(population[cell] for cell in set(cells))
        for cell in set(cells):
            share = sum(w for w, drawn in zip(weights, cells, strict=True) if drawn == cell) / len(cells)
            assert share == pytest.approx(population[cell] / total)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A labelled run with real images; one response is hostile."""
    folder = tmp_path_factory.mktemp("audited")
    rows = []
    for number in range(8):
        path = folder / f"{number}.png"
        render(draw_scene("heldout", number)).save(path)
        segments = [
            (HOSTILE if number == 3 else "There is a red circle, ", (CONSISTENT, HALLUCINATED, 0)),
            ("and a star to the left of it.", (CONSISTENT, 0, CONSISTENT)),
        ]
        rows.append(feedback_row(number, str(path), segments))
    config = Config.model_validate(
        {
            "run": {"dir": str(folder)},
            "data": {"path": str(folder)},
            "policy": {"model": "p"},
            "label": {"extractor": {"base_url": "http://127.0.0.1:9/v1", "model": "m"}, "verifier": {"model": "v"}},
            "rewards": {"backbone": "b"},
            "report": {"title": HOSTILE},
        }
    )
    stage = storage.Stage(str(folder), "feedback", "f")
    stage.begin()
    storage.write_part(stage.partial, rows, FEEDBACK_SCHEMA)
    stage.publish({"rows": len(rows)})
    label_audit.draw_audit(config, 16)
    return config


def audit_file(config: Config, name: str) -> Path:
    return Path(config.run.dir) / "audit" / name


def sample_of(config: Config) -> Audit:
    return Audit.from_dict(json.loads(audit_file(config, "sample.json").read_text()))


@pytest.fixture
def html(run: Config) -> str:
    return audit_file(run, "audit.html").read_text()


class TestPage:
    def test_the_ais_conclusions_are_not_in_it(self, html: str) -> None:
        content = json.loads(html.partition('id="data">')[2].partition("</script>")[0])
        assert {key for item in content["items"] for key in item} == {
            *("sample_id", "segment", "picture", "prompt", "before", "text", "after", "facts")
        }
        assert {key for item in content["items"] for fact in item["facts"] for key in fact} == {"type", "text"}

    def test_hostile_text_opens_no_element(self, html: str) -> None:
        assert html.count("<script") == html.count("</script>") == 2
        assert "<!--" not in html.split("<body>")[1]

    def test_it_is_written_once_for_the_same_sample(self, run: Config) -> None:
        before = audit_file(run, "audit.html").stat().st_mtime_ns
        label_audit.draw_audit(run, 16)
        assert audit_file(run, "audit.html").stat().st_mtime_ns == before

    def test_an_image_is_embedded_once(self, run: Config) -> None:
        audit = sample_of(run)
        pictures = load_pictures(audit, load_image)
        html = build_page(audit, pictures, "T")
        assert len(pictures) == 8
        assert all(html.count(url) == 1 for url, _ in pictures.values())


@pytest.fixture(scope="module")
def browser(run: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A real Chromium that has opened the page."""
    with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        browser.open(audit_file(run, "audit.html"))
        yield browser


@pytest.fixture(scope="module")
def labelled(browser: Browser) -> Path:
    """The export, after all was labelled with the keyboard: right, but for facts about attributes."""
    for index in range(16):
        assert browser.evaluate("document.getElementById('done').textContent") == str(index)
        while not browser.evaluate("document.querySelector('.map .current').classList.contains('done')"):
            on_fact = browser.evaluate("!document.querySelector('.line.current').classList.contains('verdict')")
            group = browser.evaluate("document.querySelector('.line.current').closest('.group').innerText")
            browser.press("n" if not on_fact else "w" if group.startswith("attribute") else "r")
        browser.press("Enter")
    browser.press("x")
    assert list(browser.downloads.iterdir()) == []  # not without a name
    browser.type_text("Ann B.")
    browser.press("Enter", "x")
    (file,) = browser.downloaded()
    return file


class TestBrowser:
    """One visit to the page, at which the tests look in turn."""

    def test_all_items_can_be_labelled_with_the_keyboard(self, labelled: Path, browser: Browser) -> None:
        assert browser.evaluate("document.getElementById('done').textContent") == "16"
        assert browser.evaluate("document.querySelectorAll('.map .done').length") == 16

    def test_the_export_is_what_was_answered(self, run: Config, labelled: Path) -> None:
        answers = read_answers([str(labelled)])
        items = {(item.sample_id, item.segment): item for item in sample_of(run).items}
        assert {answer.place for answer in answers} == items.keys()
        for answer in answers:
            item = items[answer.place]
            assert (answer.annotator, answer.text) == ("Ann B.", item.text)
            assert answer.facts == tuple(fact["type"] != "attribute" for fact in item.facts)
            assert answer.labels == item.labels  # this person agrees with the AI

    def test_the_export_can_be_imported(self, run: Config, labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
        label_audit.import_answers(run, [str(labelled)])
        assert "16 of 16 sub-sentences answered, of 8 images, by Ann B." in capsys.readouterr().out
        found = json.loads(audit_file(run, "agreement.json").read_text())
        assert found["labels"]["attribute"]["weighted"]["kappa"]["value"] == pytest.approx(1)
        assert found["facts"]["attribute"]["by_class"]["confusion"] == [[0, 0], [0, 8]]

    def test_answers_are_there_after_the_page_was_closed(self, run: Config, labelled: Path, browser: Browser) -> None:
        browser.open(Path("/dev/null"))
        browser.open(audit_file(run, "audit.html"))
        assert browser.evaluate("document.getElementById('done').textContent") == "16"
        assert browser.evaluate("document.getElementById('annotator').value") == "Ann B."

    def test_a_label_can_be_changed_by_mouse_and_taken_back_by_key(self, labelled: Path, browser: Browser) -> None:
        chosen = "document.querySelector('.line.verdict [aria-checked=true]').className"
        browser.click(".line.verdict button.unsure")
        assert browser.evaluate(chosen) == "unsure"
        browser.click(".line.verdict .what")
        browser.press("Backspace")
        assert browser.evaluate(chosen) == "consistent"  # as its facts say

    def test_arrows_lead_back_and_forth(self, labelled: Path, browser: Browser) -> None:
        current = "[...document.querySelectorAll('.map button')].findIndex(b => b.classList.contains('current'))"
        browser.evaluate("document.querySelectorAll('.map button')[5].click()")
        places = []
        for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
            browser.press(key)
            places.append(browser.evaluate(current))
        assert places == [6, 7, 6]

    def test_hostile_text_is_shown_as_text(self, run: Config, labelled: Path, browser: Browser) -> None:
        place = next(index for index, item in enumerate(sample_of(run).items) if item.text == HOSTILE)
        browser.evaluate(f"document.querySelectorAll('.map button')[{place}].click()")
        assert browser.evaluate("document.getElementById('text').textContent") == HOSTILE.strip()
        assert browser.evaluate("document.title") == HOSTILE.strip()

    def test_nothing_is_requested_and_nothing_fails(self, run: Config, labelled: Path, browser: Browser) -> None:
        outside = [url for url in browser.requests if not url.startswith(("data:", "file:"))]
        assert [url for url in outside if not url.startswith("blob:")] == []
        assert browser.problems == []


def answer_file(path: Path, sample: Audit, annotator: str = "ann", **changes: Any) -> str:
    """Our form, agreeing with the AI everywhere; ``changes`` replace keys of the file."""
    answers = [
        {
            "sample_id": item.sample_id,
            "segment": item.segment,
            "text": item.text,
            "facts": ["right" if verdict else "wrong" for verdict in item.verdicts],
            "labels": {name: CLASS_NAMES[code] for name, code in item.labels.items()},
        }
        for item in sample.items
    ]
    head = {"format": "fgaif-audit-answers", "version": 1, "audit": sample.id, "annotator": annotator}
    path.write_text(json.dumps(head | {"answers": answers} | changes))
    return str(path)


class TestAnswers:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "is not JSON"),
            ("{}", "holds no answers"),
            ('"text"', "holds no answers"),
            ('{"format": "fgaif-audit-answers", "version": 9}', "has version 9"),
            ('{"format": "fgaif-audit-answers", "version": 1}', "lacks its audit"),
            ("[]", "holds no answers"),
            ('[{"id": 1, "annotation_id": 3, "existence": "consistent"}]', "JSON-MIN"),
            ('[{"id": 1}]', "task 1 has no list of annotations"),
            ('[{"id": 1, "annotations": [], "data": {"image": "x"}}]', "task 1 is none of an audit"),
        ],
    )
    def test_each_kind_of_wrong_file_has_its_sentence(self, tmp_path: Path, content: str, message: str) -> None:
        path = tmp_path / "answers.json"
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_answers([str(path)])

    def test_a_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="Cannot read"):
            read_answers([str(tmp_path / "none.json")])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"labels": {"existence": "maybe"}}, "answer 1 has the label 'maybe'"),
            ({"labels": {"objects": "absent"}}, "answer 1 needs labels by type"),
            ({"labels": ["absent"]}, "answer 1 needs labels by type"),
            ({"facts": ["yes"]}, "answer 1 has the fact 'yes'"),
            ({"facts": None}, "answer 1 needs a list of facts"),
            ({"segment": "0"}, "answer 1 does not say which sub-sentence"),
            ({"segment": True}, "answer 1 does not say which sub-sentence"),
        ],
    )
    def test_each_kind_of_wrong_answer_has_its_sentence(
        self, tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        answer = {"sample_id": "a", "segment": 0, "text": "t", "facts": [], "labels": {}} | change
        path = answer_file(tmp_path / "a.json", draw(many_rows(1), 1), answers=[answer])
        with pytest.raises(UserError, match=message):
            read_answers([path])

    def test_the_same_person_twice_is_refused(self, run: Config, tmp_path: Path) -> None:
        path = answer_file(tmp_path / "a.json", sample_of(run))
        with pytest.raises(UserError, match="ann has answered about sub-sentence"):
            read_answers([path, path])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"audit": "other"}, "answers another sample"),
            ({"answers": [{"sample_id": "a", "segment": 0, "text": "t", "facts": [], "labels": {}}]}, "not in the"),
        ],
    )
    def test_answers_to_something_else_are_refused(
        self, run: Config, tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        path = answer_file(tmp_path / "a.json", sample_of(run), **change)
        with pytest.raises(UserError, match=message):
            label_audit.import_answers(run, [path])

    def test_answers_about_another_number_of_facts_are_refused(self, run: Config, tmp_path: Path) -> None:
        path = Path(answer_file(tmp_path / "a.json", sample_of(run)))
        content = json.loads(path.read_text())
        content["answers"][0]["facts"].append("right")
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match="judges 3 facts"):
            label_audit.import_answers(run, [str(path)])

    def test_unsure_and_open_answers_are_no_labels(self, tmp_path: Path) -> None:
        labels = {"existence": "unsure", "attribute": None, "relation": "absent"}
        answer = {"sample_id": "a", "segment": 0, "text": "t", "facts": ["unsure", None], "labels": labels}
        (found,) = read_answers([answer_file(tmp_path / "a.json", draw(many_rows(1), 1), answers=[answer])])
        assert (found.labels, found.facts) == ({"relation": 0}, (None, None))

    def test_the_majority_wins_and_a_tie_does_not(self) -> None:
        votes = [(1, 1), (2, 1), (1, 2)]
        answers = [
            HumanAnswer("x", f"p{index}", "a", 0, "t", {"existence": first, "attribute": second}, None)
            for index, (first, second) in enumerate([*votes, (1, 2)])
        ]
        assert majority_labels(answers) == {("a", 0): ("t", {"existence": 1})}


class TestLabelStudio:
    def export(self, run: Config, chosen: dict[str, list[str]], **annotation: Any) -> list[dict[str, Any]]:
        """The tasks as Label Studio gives them back, all with the same choices."""
        result = [
            {"id": "x", "from_name": name, "to_name": "sub_sentence", "type": "choices", "value": {"choices": choices}}
            for name, choices in chosen.items()
        ]
        tasks = json.loads(audit_file(run, "audit_tasks.json").read_text())
        return [
            {"id": number, "annotations": [{"completed_by": 7, "result": result} | annotation], "data": task["data"]}
            for number, task in enumerate(tasks)
        ]

    def read(self, path: Path, tasks: list[dict[str, Any]]) -> list[HumanAnswer]:
        path.write_text(json.dumps(tasks))
        return read_answers([str(path)])

    def test_every_field_of_the_configuration_is_in_the_tasks(self, run: Config) -> None:
        root = ET.fromstring(LABELLING_CONFIG)
        wanted = {value[1:] for node in root.iter() if (value := node.get("value", "")).startswith("$")}
        for task in json.loads(audit_file(run, "audit_tasks.json").read_text()):
            assert wanted <= task["data"].keys()
        assert audit_file(run, "label_studio.xml").read_text() == LABELLING_CONFIG

    def test_its_choices_are_those_that_are_read(self) -> None:
        root = ET.fromstring(LABELLING_CONFIG)
        asked = {node.get("name"): tuple(c.get("alias") for c in node) for node in root.iter("Choices")}
        assert asked == dict.fromkeys(FACT_TYPES, CHOICES)

    def test_an_export_is_read(self, run: Config, tmp_path: Path) -> None:
        tasks = self.export(run, {"existence": ["consistent"], "relation": ["unsure"]})
        answers = self.read(tmp_path / "ls.json", tasks)
        assert {answer.place for answer in answers} == {(item.sample_id, item.segment) for item in sample_of(run).items}
        assert all((a.annotator, a.labels, a.facts) == ("annotator 7", {"existence": 1}, None) for a in answers)

    def test_an_export_can_be_imported(self, run: Config, tmp_path: Path) -> None:
        path = tmp_path / "ls.json"
        path.write_text(json.dumps(self.export(run, {"existence": ["hallucinated"]})))
        label_audit.import_answers(run, [str(path)])
        found = json.loads(audit_file(run, "agreement.json").read_text())
        assert found["labels"]["existence"]["sample"]["accuracy"]["value"] == 0
        assert len(found["disagreements"]) == 16

    def test_annotators_are_named_by_their_address(self, run: Config, tmp_path: Path) -> None:
        tasks = self.export(run, {"existence": ["absent"]}, completed_by={"id": 1, "email": "a@example.org"})
        assert self.read(tmp_path / "ls.json", tasks)[0].annotator == "a@example.org"

    def test_skipped_tasks_are_left_out(self, run: Config, tmp_path: Path) -> None:
        tasks = self.export(run, {"existence": ["absent"]})
        tasks[0]["annotations"][0]["was_cancelled"] = True
        assert len(self.read(tmp_path / "ls.json", tasks)) == 15

    @pytest.mark.parametrize("choices", [["perhaps"], [], ["absent", "consistent"]])
    def test_other_choices_are_refused(self, run: Config, tmp_path: Path, choices: list[str]) -> None:
        with pytest.raises(UserError, match="not exactly one of"):
            self.read(tmp_path / "ls.json", self.export(run, {"existence": choices}))


class TestAgreement:
    def answers(self, audit: Audit, annotator: str, wrong: set[int] = frozenset()) -> list[HumanAnswer]:
        """Agrees with the AI but for the existence of some items."""
        return [
            HumanAnswer(
                audit.id,
                annotator,
                item.sample_id,
                item.segment,
                item.text,
                dict(item.labels) | ({"existence": (item.labels["existence"] + 1) % 3} if index in wrong else {}),
                tuple(item.verdicts),
            )
            for index, item in enumerate(audit.items)
        ]

    def test_weighted_accuracy_is_that_of_the_whole_set(self) -> None:
        """People find all labels of one cell wrong: its share of the set, not of the sample, is the error."""
        rows = [feedback_row(i, f"{i}.png", [("A dog.", (1, 0, 0) if i < 90 else (2, 0, 0))]) for i in range(100)]
        audit = draw(rows, 20)
        wrong = {index for index, item in enumerate(audit.items) if item.labels["existence"] == HALLUCINATED}
        found = compare(audit, self.answers(audit, "a", wrong), draws=20)["labels"]["existence"]
        assert len(wrong) == 10
        assert found["sample"]["accuracy"]["value"] == pytest.approx(0.5)
        assert found["weighted"]["accuracy"]["value"] == pytest.approx(0.9)
        assert found["covered"] == 1

    def test_several_people_are_compared_with_each_other(self) -> None:
        audit = draw(many_rows(30), 40)
        answers = [*self.answers(audit, "a"), *self.answers(audit, "b", {0, 1}), *self.answers(audit, "c", {1})]
        found = compare(audit, answers, draws=20)["labels"]
        assert found["existence"]["by_class"]["accuracy"] == pytest.approx(39 / 40)
        assert 0.9 < found["existence"]["sample"]["alpha_of_people"]["value"] < 1
        assert found["relation"]["sample"]["alpha_of_people"]["value"] == pytest.approx(1)

    def test_ties_and_missing_answers_are_counted_and_left_out(self) -> None:
        audit = draw(many_rows(30), 10)
        answers = [*self.answers(audit, "a")[1:], *self.answers(audit, "b", {3})[1:]]
        found = compare(audit, answers, draws=20)["labels"]["existence"]
        assert (found["compared"], found["unanswered"], found["tied"]) == (8, 1, 1)

    def test_one_person_has_no_alpha_among_people(self) -> None:
        audit = draw(many_rows(30), 10)
        found = compare(audit, self.answers(audit, "a"), draws=20)
        assert "alpha_of_people" not in found["labels"]["existence"]["sample"]

    def test_disagreements_say_what_was_disagreed_about(self) -> None:
        audit = draw([feedback_row(0, "a.png", [("A dog.", (1, 0, 0))])], 1)
        (found,) = compare(audit, self.answers(audit, "a", {0}), draws=20)["disagreements"]
        assert (found["type"], found["ai"], found["people"]) == ("existence", "consistent", "hallucinated")
        assert found["facts"] == [{"text": "existence of A dog.", "consistent": True}]

    def test_the_table_has_a_line_for_each_type(self) -> None:
        audit = draw(many_rows(30), 20)
        lines = label_audit.agreement_table(compare(audit, self.answers(audit, "a"), draws=20))
        assert [line.split("  ")[0] for line in lines[1:-1]] == [
            f"{name} {what}" for what in ("labels", "facts") for name in FACT_TYPES
        ]


class TestJob:
    def command(self, run: Config, tmp_path: Path, *arguments: str) -> int:
        config = tmp_path / "run.yaml"
        config.write_text(json.dumps(run.model_dump(mode="json")))
        return main("label", None, lambda config: None, ["--config", str(config), *arguments], label_audit.MODES)

    def test_audit_prints_the_path_of_the_page(
        self, run: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.command(run, tmp_path, "--audit", "16") == 0
        assert str(audit_file(run, "audit.html")) in capsys.readouterr().out

    def test_several_files_are_imported_together(
        self, run: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        files = [answer_file(tmp_path / f"{name}.json", sample_of(run), name) for name in ("ann", "bo")]
        assert self.command(run, tmp_path, "--audit-import", *files) == 0
        assert "by ann, bo; 0 labels differ" in capsys.readouterr().out

    @pytest.mark.parametrize("arguments", [("--audit", "0"), ("--audit-import", "none.json")])
    def test_mistakes_end_with_one_sentence(
        self, run: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
    ) -> None:
        assert self.command(run, tmp_path, *arguments) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1

    def test_an_import_before_a_draw_names_the_option(self, run: Config, tmp_path: Path) -> None:
        elsewhere = run.model_copy(update={"run": run.run.model_copy(update={"dir": str(tmp_path)})})
        with pytest.raises(UserError, match="--audit N"):
            label_audit.import_answers(elsewhere, ["a.json"])

    def test_an_audit_before_labelling_names_the_job(self, run: Config, tmp_path: Path) -> None:
        elsewhere = run.model_copy(update={"run": run.run.model_copy(update={"dir": str(tmp_path)})})
        with pytest.raises(UserError, match=r"jobs\.label"):
            label_audit.draw_audit(elsewhere, 5)
