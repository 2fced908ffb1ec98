"""AMBER: readers of the official form, and figures computed by hand."""

import json
from pathlib import Path

import pytest
from support.benchmark_files import figures_of, needs_official, official, write_amber

from fgaif_ray.config import AmberConfig
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation.benchmarks.amber import Amber, WordJudge
from fgaif_ray.evaluation.benchmarks.base import Scores
from fgaif_ray.evaluation.benchmarks.words import says

ALL_NO = dict.fromkeys("234567", "No")


def amber(tmp_path: Path, **files: object) -> Amber:
    folder = Path(write_amber(tmp_path / "amber"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return Amber(AmberConfig(path=str(folder)))


def score(tmp_path: Path, answers: dict[str, str]) -> Scores:
    return amber(tmp_path).score(answers, {})


def test_a_description_is_scored_by_mentions_objects_and_pitfalls(tmp_path: Path) -> None:
    # lake, water: true; boat: wrong and a pitfall; clouds: wrong; light: a safe word, which counts as a mention
    text = "The lake holds water, a boat and clouds in the light."
    figures = figures_of(score(tmp_path, {"1": text}))
    assert figures["chair"] == 2 / 5
    assert figures["cover"] == pytest.approx(1 / 3)
    assert figures["hal"] == 1.0
    assert figures["cog"] == 1 / 2


def test_a_true_description_has_no_hallucination(tmp_path: Path) -> None:
    figures = figures_of(score(tmp_path, {"1": "Two men near a pond with bushes."}))
    assert (figures["chair"], figures["cover"], figures["hal"], figures["cog"]) == (0.0, 1.0, 0.0, 0.0)


def test_no_is_the_positive_class(tmp_path: Path) -> None:
    figures = figures_of(score(tmp_path, ALL_NO))
    assert figures["all.accuracy"] == 4 / 6
    assert figures["all.precision"] == 4 / 6
    assert figures["all.recall"] == 1.0
    assert figures["all.f1"] == pytest.approx(0.8)


def test_both_types_of_relation_questions_count_as_relation(tmp_path: Path) -> None:
    figures = figures_of(score(tmp_path, ALL_NO))
    assert (figures["relation.accuracy"], figures["relation.precision"]) == (1 / 2, 1 / 2)


def test_attribute_is_state_number_and_action(tmp_path: Path) -> None:
    figures = figures_of(score(tmp_path, ALL_NO | {"5": "Yes"}))
    assert figures["attribute.accuracy"] == pytest.approx(1 / 3)
    assert (figures["state.accuracy"], figures["number.accuracy"], figures["action.accuracy"]) == (0.0, 1.0, 0.0)


def test_the_amber_score_joins_both_halves(tmp_path: Path) -> None:
    figures = figures_of(score(tmp_path, ALL_NO | {"1": "A lake and a boat."}))
    assert figures["amber_score"] == pytest.approx((100 - 50 + 80) / 2)


def test_one_half_alone_has_no_amber_score(tmp_path: Path) -> None:
    assert figures_of(score(tmp_path, ALL_NO))["amber_score"] is None


@pytest.mark.parametrize(
    ("answer", "read"),
    [("Yes", "Yes"), ("No", "No"), ("no.", "No"), ("Yes, there is.", "Yes"), ("Not at all", None), ("", None)],
)
def test_an_answer_is_read_by_its_first_word(answer: str, read: str | None) -> None:
    assert says(answer) == read


def test_answers_that_are_neither_are_wrong_and_counted(tmp_path: Path) -> None:
    scores = score(tmp_path, ALL_NO | {"2": "I see a boat.", "4": "No, one."})
    assert scores.counts == {"unanswered": 1, "neither_yes_nor_no": 1, "not_exactly_yes_or_no": 2}
    assert figures_of(scores)["existence.accuracy"] == 0.0


def test_similar_words_come_from_a_file(tmp_path: Path) -> None:
    text = {"1": "A lake under a cloud."}
    assert figures_of(amber(tmp_path / "a").score(text, {}))["chair"] == 1 / 2
    with_file = amber(tmp_path / "b", similar={"cloud": ["tree"]})
    assert figures_of(with_file.score(text, {}))["chair"] == 0.0
    assert figures_of(with_file.score(text, {}))["cover"] == pytest.approx(2 / 3)
    assert with_file.settings["similar_words"] == "similar.json"


def test_a_capital_letter_hides_a_word_as_in_the_official_script() -> None:
    judge = WordJudge({"lake": [], "tree": []}, frozenset())
    assert judge.nouns("Trees by a lake.") == ["lake"]


def test_a_capital_in_the_official_list_is_found() -> None:
    assert WordJudge({"TV": []}, frozenset()).nouns("A TV.") == ["TV"]


def test_an_annotated_word_without_associations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no list for the annotated word 'lake'"):
        amber(tmp_path, relation={"tree": []})


def test_an_unknown_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="entry 1 has the type 'other'"):
        amber(tmp_path, annotations=[{"id": 1, "type": "other", "truth": "yes"}])


@needs_official("amber")
def test_the_official_files_are_read_whole() -> None:
    amber = Amber(AmberConfig(path=official("amber")))
    assert len(amber.questions) == 15_220
    assert amber.questions[0].prompt == "Describe this image."


@needs_official("amber")
def test_the_truth_scores_one_and_its_opposite_nought() -> None:
    amber = Amber(AmberConfig(path=official("amber")))
    truth = json.loads(Path(official("amber"), "annotations.json").read_text())
    right = {
        str(row["id"]): ", ".join(row["truth"]) if row["type"] == "generative" else row["truth"].capitalize()
        for row in truth
    }
    figures = figures_of(amber.score(right, {}))
    assert (figures["chair"], figures["hal"], figures["cog"]) == (0.0, 0.0, 0.0)
    # Not all: some annotated words stand for another one too ("child" for "person"), and the first one is covered.
    assert figures["cover"] == pytest.approx(0.93, abs=0.05)
    assert (figures["all.f1"], figures["amber_score"]) == (1.0, 100.0)
    wrong = {id_: {"Yes": "No", "No": "Yes"}[answer] for id_, answer in right.items() if answer in ("Yes", "No")}
    assert figures_of(amber.score(wrong, {}))["all.accuracy"] == 0.0


@needs_official("amber")
def test_always_no_is_right_as_often_as_the_annotations_say_no() -> None:
    amber = Amber(AmberConfig(path=official("amber")))
    figures = figures_of(amber.score({question.id: "No" for question in amber.questions[1004:]}, {}))
    assert figures["all.accuracy"] == 9427 / 14_216
    assert figures["relation.accuracy"] == 689 / 1664
    assert figures["existence.accuracy"] == 1.0
