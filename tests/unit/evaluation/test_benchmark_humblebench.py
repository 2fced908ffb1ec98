"""HumbleBench: letters in answers, and accuracies by the official rules."""

from pathlib import Path

import pytest
from support.benchmark_files import HUMBLE_ORDER, figures_of, write_humblebench

from fgaif_ray.config import HumbleBenchConfig
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation.benchmarks.humblebench import HumbleBench, letters_in


def benchmark(tmp_path: Path, **settings: object) -> HumbleBench:
    path = write_humblebench(tmp_path / "humble")
    return HumbleBench(HumbleBenchConfig.model_validate({"path": path, **settings}))


def test_accuracy_in_total_and_by_type(tmp_path: Path) -> None:
    found = figures_of(benchmark(tmp_path).score({"0": "E", "1": "B. two", "2": "A"}, {}))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert (found["object.accuracy"], found["attribute.accuracy"], found["relation.accuracy"]) == (1.0, 1.0, 0.0)
    assert (found["said_e"], found["said_a"], found["said_d"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3), 0.0)


def test_e_counts_for_its_own_accuracy_if_it_stands_alone(tmp_path: Path) -> None:
    scores = benchmark(tmp_path).score({"0": "E. None of the above", "1": "B", "2": "C"}, {})
    found = figures_of(scores)
    assert (found["accuracy"], found["e_accuracy"], scores.counts["e_but_not_exactly"]) == (1.0, 0.0, 1)


@pytest.mark.parametrize(
    ("answer", "letters"),
    [("B", {"B"}), ("b.", {"B"}), ("A or B", {"A", "B"}), ("B, a cat", {"A", "B"}), ("None", set()), ("", set())],
)
def test_letters_of_an_answer(answer: str, letters: set[str]) -> None:
    assert letters_in(answer) == letters


def test_an_answer_with_two_letters_is_wrong_and_counted(tmp_path: Path) -> None:
    scores = benchmark(tmp_path).score({"0": "E", "1": "B, a pair", "2": "C"}, {})
    assert (figures_of(scores)["attribute.accuracy"], scores.counts["not_one_letter"]) == (0.0, 1)


def test_questions_end_with_the_official_order(tmp_path: Path) -> None:
    assert {question.prompt.endswith(f"above{HUMBLE_ORDER}") for question in benchmark(tmp_path).questions} == {True}


def test_without_the_official_constants_nothing_is_added(tmp_path: Path) -> None:
    folder = Path(write_humblebench(tmp_path / "humble"))
    (folder / "constant.py").unlink()
    humble = HumbleBench(HumbleBenchConfig(path=str(folder)))
    assert humble.questions[0].prompt.endswith("E. None of the above")
    assert humble.settings["order_to_answer_by_letter"] is False


def test_the_variant_e_takes_the_right_option_away(tmp_path: Path) -> None:
    humble = benchmark(tmp_path, variant="e")
    assert humble.questions[1].prompt == f"How many?\nA. one\nC. three\nD. four\nE. None of the above{HUMBLE_ORDER}"
    assert figures_of(humble.score(dict.fromkeys("012", "E"), {}))["e_accuracy"] == 1.0


def test_an_image_may_stand_as_a_path_in_an_object(tmp_path: Path) -> None:
    folder = Path(write_humblebench(tmp_path / "humble"))
    text = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(text.replace('"file_name": "0.jpg"', '"image": {"path": "0.jpg"}'))
    assert HumbleBench(HumbleBenchConfig(path=str(folder))).questions[0].image == "0.jpg"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"label": "B"', '"label": "F"'), "question 1 has the label 'F'"),
        (('"question_id": 1', '"question_id": 0'), "question 0 has the id of another one"),
        (('"file_name": "1.jpg"', '"file": 1'), "entry 2 has no file_name"),
    ],
)
def test_rows_of_another_form_are_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    folder = Path(write_humblebench(tmp_path / "humble"))
    text = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(text.replace(*change))
    with pytest.raises(UserError, match=message):
        HumbleBench(HumbleBenchConfig(path=str(folder)))
