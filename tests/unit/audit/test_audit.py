"""The audit: its sample, its page in a real browser, and the options of the job."""

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.audit_data import HOSTILE, answer_file, audit_file, draw, feedback_row, labelled_run, many_rows, sample_of
from support.browser import Browser, open_browser

from fgaif_ray.audit.human import read_answers
from fgaif_ray.audit.items import Audit, AuditSampler, cell_weights
from fgaif_ray.audit.page import build_page, load_pictures
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.fact_types import DEFAULT
from fgaif_ray.images import load_image
from fgaif_ray.records import FACT_TYPES, HALLUCINATED, Feedback
from jobs import audit as audit_job
from jobs.cli import main


@pytest.fixture(scope="module")
def rows() -> list[Feedback]:
    return many_rows(300)


class TestSample:
    def test_rare_labels_are_drawn_as_often_as_there_are_enough(self, rows: list[Feedback]) -> None:
        for labels in draw(rows, 90).strata().values():
            assert labels["hallucinated"]["drawn"] >= 25

    def test_the_order_of_rows_makes_no_difference(self, rows: list[Feedback]) -> None:
        shuffled = random.Random(1).sample(rows, len(rows))
        assert draw(rows, 40) == draw(shuffled, 40)

    def test_another_seed_draws_others(self, rows: list[Feedback]) -> None:
        assert draw(rows, 40, seed=0).id != draw(rows, 40, seed=1).id

    def test_images_are_spread(self, rows: list[Feedback]) -> None:
        assert max(Counter(item.image for item in draw(rows, 60).items).values()) <= 2

    def test_nothing_is_drawn_twice(self, rows: list[Feedback]) -> None:
        items = draw(rows, 200).items
        assert len({(item.sample_id, item.segment) for item in items}) == len(items) == 200

    def test_a_small_set_is_drawn_whole(self) -> None:
        assert len(draw(many_rows(3), 50).items) == 12

    def test_the_sample_survives_json(self, rows: list[Feedback]) -> None:
        audit = draw(rows, 20)
        assert Audit.from_dict(json.loads(json.dumps(audit.to_dict()))) == audit

    def test_labels_that_noise_turned_are_drawn_as_the_ai_gave_them(self) -> None:
        row = feedback_row(0, "a.png", [("A dog.", (1, 0, 0))])
        ais = {"existence": HALLUCINATED, "attribute": 0, "relation": 0}
        flipped = dataclasses.replace(row.segments[0], ai_labels=ais)
        assert draw([dataclasses.replace(row, segments=(flipped,))], 1).items[0].labels["existence"] == HALLUCINATED

    @pytest.mark.parametrize("count", [0, -3])
    def test_a_sample_of_nothing_is_refused(self, count: int) -> None:
        with pytest.raises(UserError, match="at least 1"):
            AuditSampler(count, 0)

    def test_a_run_without_sub_sentences_is_refused(self) -> None:
        with pytest.raises(UserError, match="no labelled segment"):
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
    return labelled_run(tmp_path_factory.mktemp("audited"))


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
        audit_job.draw_audit(run, 16)
        assert audit_file(run, "audit.html").stat().st_mtime_ns == before

    def test_it_is_not_replaced_unasked(self, run: Config) -> None:
        before = sample_of(run)
        with pytest.raises(UserError, match=r"audit is finished \(\d+ sub-sentences, .*--overwrite"):
            audit_job.draw_audit(run, 5)
        assert sample_of(run) == before

    def test_an_image_is_embedded_once(self, run: Config) -> None:
        audit = sample_of(run)
        pictures = load_pictures(audit, load_image)
        html = build_page(audit, pictures, "T", DEFAULT)
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
        answers = read_answers([str(labelled)], FACT_TYPES)
        items = {(item.sample_id, item.segment): item for item in sample_of(run).items}
        assert {answer.place for answer in answers} == items.keys()
        for answer in answers:
            item = items[answer.place]
            assert (answer.annotator, answer.text) == ("Ann B.", item.text)
            assert answer.facts == tuple(fact.type != "attribute" for fact in item.facts)
            assert answer.labels == item.labels  # this person agrees with the AI

    def test_the_export_can_be_imported(self, run: Config, labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
        audit_job.import_answers(run, [str(labelled)])
        assert "16 of 16 segments answered, of 8 images, by Ann B." in capsys.readouterr().out
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


class TestJob:
    def command(self, run: Config, tmp_path: Path, *arguments: str) -> int:
        config = tmp_path / "run.yaml"
        config.write_text(json.dumps(run.model_dump(mode="json")))
        return main("audit", [*arguments, "--config", str(config)])

    def test_audit_prints_the_path_of_the_page(
        self, run: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.command(run, tmp_path, "draw", "16") == 0
        assert str(audit_file(run, "audit.html")) in capsys.readouterr().out

    def test_several_files_are_imported_together(
        self, run: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        files = [answer_file(tmp_path / f"{name}.json", sample_of(run), name) for name in ("ann", "bo")]
        assert self.command(run, tmp_path, "import", *files) == 0
        assert "by ann, bo; 0 labels differ" in capsys.readouterr().out

    @pytest.mark.parametrize("arguments", [("draw", "0"), ("import", "none.json")])
    def test_mistakes_end_with_one_sentence(
        self, run: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
    ) -> None:
        assert self.command(run, tmp_path, *arguments) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1

    def test_an_import_before_a_draw_names_the_command(self, run: Config, tmp_path: Path) -> None:
        elsewhere = run.model_copy(update={"run": run.run.model_copy(update={"dir": str(tmp_path)})})
        with pytest.raises(UserError, match="fgaif audit draw N"):
            audit_job.import_answers(elsewhere, ["a.json"])

    def test_an_audit_before_labelling_names_the_job(self, run: Config, tmp_path: Path) -> None:
        elsewhere = run.model_copy(update={"run": run.run.model_copy(update={"dir": str(tmp_path)})})
        with pytest.raises(UserError, match=r"jobs\.label"):
            audit_job.draw_audit(elsewhere, 5)
