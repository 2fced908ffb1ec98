"""HallusionBench: groups of questions, counted by hand as the official script counts them."""

from pathlib import Path

import pytest
from support.benchmark_files import HALLUSION_SCRIPT, figures_of, write_hallusionbench

from fgaif_ray.config import HallusionBenchConfig
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation.benchmarks.base import Review
from fgaif_ray.evaluation.benchmarks.hallusionbench import HallusionBench, judge_prompt, read_verdict
from fgaif_ray.evaluation.benchmarks.images import ImageFolder

RIGHT = ["Yes", "No", "No", "Yes", "Yes", "Yes"]
"""Right answers to the questions in their order."""


def benchmark(tmp_path: Path, reading: str = "words") -> HallusionBench:
    path = write_hallusionbench(tmp_path / "hallusion")
    return HallusionBench(HallusionBenchConfig.model_validate({"path": path, "reading": reading}))


def figures(tmp_path: Path, said: list[str]) -> dict[str, float | None]:
    hallusion = benchmark(tmp_path)
    answers = {question.id: answer for question, answer in zip(hallusion.questions, said, strict=True)}
    return figures_of(hallusion.score(answers, {}))


def test_right_answers_are_right_in_every_group(tmp_path: Path) -> None:
    found = figures(tmp_path, RIGHT)
    assert {found[name] for name in ("a_acc", "q_acc", "f_acc", "easy", "hard", "vd.q_acc", "vs.f_acc")} == {1.0}
    assert (found["yes_difference"], found["false_yes"]) == (0.0, None)


def test_one_mistake_spoils_its_question_and_its_figure(tmp_path: Path) -> None:
    found = figures(tmp_path, ["Yes", "No", "Yes", "Yes", "Yes", "Yes"])  # the third: question 0 of the edited image
    assert found["a_acc"] == pytest.approx(5 / 6)
    assert found["q_acc"] == pytest.approx(2 / 3)  # VD 0 is wrong; VD 1 and VS 0 are right
    assert found["f_acc"] == pytest.approx(2 / 3)  # figures VD 0, VD 1 and VS 1: VS 0 is no figure
    assert (found["easy"], found["hard"]) == (1.0, 0.5)
    assert (found["vd.q_acc"], found["vs.q_acc"]) == (0.5, 1.0)
    assert found["yes_difference"] == pytest.approx(1 / 6)
    assert found["false_yes"] == 1.0


def test_not_to_know_without_an_image_is_right(tmp_path: Path) -> None:
    found = figures(tmp_path, [*RIGHT[:4], "I cannot tell.", "Yes"])
    assert found["vs.a_acc"] == 1.0


def test_not_to_know_with_an_image_is_wrong(tmp_path: Path) -> None:
    found = figures(tmp_path, [*RIGHT[:5], "I cannot tell."])
    assert (found["vs.a_acc"], found["vs.q_acc"]) == (0.5, 0.0)


def test_a_question_without_an_image_names_none(tmp_path: Path) -> None:
    images = [question.image for question in benchmark(tmp_path).questions]
    assert images == ["VD/chart/0_0.png"] * 2 + ["VD/chart/0_1.png"] * 2 + ["", "VS/chart/0_1.png"]


def test_images_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for name in ("VD/chart/0_1.png", "VS/chart/0_1.png"):
        (tmp_path / "figures" / name).parent.mkdir(parents=True)
        (tmp_path / "figures" / name).write_bytes(b"")
    found = ImageFolder("hallusionbench", str(tmp_path)).find_all(["", "VS/chart/0_1.png"])
    assert found == {"VS/chart/0_1.png": f"{tmp_path}/figures/VS/chart/0_1.png"}


def test_an_image_of_another_folder_is_not_taken_for_one_that_is_missing(tmp_path: Path) -> None:
    for name in ("VD/chart/0_1.png", "VS/chart/0_1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"the first: VS/map/0_1\.png"):
        ImageFolder("hallusionbench", str(tmp_path)).find_all(["VS/map/0_1.png"])


def test_the_judge_is_asked_with_the_official_prompt(tmp_path: Path) -> None:
    hallusion = benchmark(tmp_path, "judge")
    (asked,) = hallusion.judge_questions({hallusion.questions[0].id: "Yes, {question}."})
    text = "Judge. Question:Is it 0? Reference:It is 1. Prediction:Yes, {question}. Output:"
    assert asked.messages == [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("review", "verdict"), [("Correct.", 1), ("It is INCORRECT", 0), ("unclear", 2), ("Hm.", 2), ("", None)]
)
def test_verdicts_of_a_judge(review: str, verdict: int | None) -> None:
    assert read_verdict(review) == verdict


def test_a_group_with_an_answer_that_was_not_judged_is_left_out(tmp_path: Path) -> None:
    hallusion = benchmark(tmp_path, "judge")
    ids = [question.id for question in hallusion.questions]
    reviews = {(id_, False): Review("correct") for id_ in ids[1:]}
    scores = hallusion.score(dict.fromkeys(ids, "Yes"), reviews)
    found = figures_of(scores)
    assert (scores.counts["unrated"], found["a_acc"], found["vd.q_acc"], found["vd.easy"]) == (1, 1.0, 1.0, 1.0)
    assert scores.columns.sum(axis=0)[3] == 2  # groups of questions that are known: VD 1 and VS 0


def test_sets_are_drawn_whole(tmp_path: Path) -> None:
    hallusion = benchmark(tmp_path)
    answers = {question.id: "Yes" for question in hallusion.questions}
    assert set(hallusion.score(answers, {}).images) == {"VD_chart_0", "VS_chart_0"}


def test_a_script_with_another_prompt_is_refused(tmp_path: Path) -> None:
    folder = Path(write_hallusionbench(tmp_path / "hallusion"))
    (folder / "utils.py").write_text(HALLUSION_SCRIPT.replace("sample['question']", "''"))
    with pytest.raises(UserError, match="makes no prompt"):
        HallusionBench(HallusionBenchConfig(path=str(folder)))


def test_a_script_that_is_not_python_has_no_prompt() -> None:
    assert judge_prompt("def (") is None
