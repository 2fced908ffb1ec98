"""MMHal-Bench and LLaVA-Bench: what the judge is asked, how it is read, and figures computed by hand."""

from pathlib import Path

import pytest
from support.benchmark_files import MMHAL_TYPES, figures_of, write_llava_bench, write_mmhal

from fgaif_ray.config import LlavaBenchConfig, MMHalConfig
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation.benchmarks.base import Review
from fgaif_ray.evaluation.benchmarks.llava_bench import LlavaBench, read_scores
from fgaif_ray.evaluation.benchmarks.mmhal import MMHal, read_rating


@pytest.fixture
def mmhal(tmp_path: Path) -> MMHal:
    return MMHal(MMHalConfig(path=write_mmhal(tmp_path / "mmhal")))


@pytest.fixture
def llava_bench(tmp_path: Path) -> LlavaBench:
    return LlavaBench(LlavaBenchConfig(path=write_llava_bench(tmp_path / "llava")))


@pytest.mark.parametrize(
    ("review", "rating"),
    [
        ("It is right.\nRating: 4", 4),
        ("rating: 0, not informative, with hallucination", 0),
        ("**Rating: 6**", 6),
        ("**Rating:** 3", 3),
        ("Rating: 2 ... so Rating: 2", 2),
        ("Rating: 2 or Rating: 3", None),  # several
        ("Rating: 10", None),  # out of range, not 1
        ("I cannot rate this.", None),
        ("", None),
    ],
)
def test_a_rating_is_read_or_it_is_none(review: str, rating: int | None) -> None:
    assert read_rating(review) == rating


def test_mmhal_means_ratings_and_takes_less_than_three_for_hallucinated(mmhal: MMHal) -> None:
    answers = dict.fromkeys((question.id for question in mmhal.questions), "Two cats.")
    ratings = [6, 5, 4, 3, 2, 1, 0, 6] * 2
    reviews = {(str(n), False): Review(f"Rating: {rating}") for n, rating in enumerate(ratings)}
    figures = figures_of(mmhal.score(answers, reviews))
    assert figures["score"] == 27 / 8
    assert figures["hallucination_rate"] == 3 / 8
    assert [figures[f"{kind}.score"] for kind in MMHAL_TYPES] == ratings[:8]


def test_a_review_without_a_rating_is_counted_and_not_taken_for_nought(mmhal: MMHal) -> None:
    answers = {"0": "A cat.", "1": "A dog.", "2": "A cow."}
    reviews = {("0", False): Review("Rating: 6"), ("1", False): Review("Hm."), ("2", False): Review(None, "timeout")}
    scores = mmhal.score(answers, reviews)
    assert figures_of(scores)["score"] == 6.0
    assert scores.counts == {"unanswered": 13, "unrated": 2}


def test_the_official_template_is_filled_in_order_and_braces_stay(mmhal: MMHal) -> None:
    (asked,) = mmhal.judge_questions({"3": "{two}"})
    (message,) = asked.messages
    assert message["content"] == "Rate the answer. Cat, {Tree}\nQuestion: Question 3?\nTruth: Truth 3.\nAnswer: {two}\n"
    assert (asked.id, asked.swapped) == ("3", False)


def test_categories_by_name_are_those_by_position(mmhal: MMHal) -> None:
    assert mmhal._types == [MMHAL_TYPES[index % 8] for index in range(16)]


def test_an_mmhal_image_is_named_by_its_address(mmhal: MMHal) -> None:
    assert mmhal.questions[5].image == "5_o.jpg"


def test_a_script_without_the_template_is_refused(tmp_path: Path) -> None:
    folder = Path(write_mmhal(tmp_path / "mmhal"))
    (folder / "eval_gpt_mmhal.py").write_text("template = 'no places'")
    with pytest.raises(UserError, match="no text 'template' with four places"):
        MMHal(MMHalConfig(path=str(folder)))


@pytest.mark.parametrize(
    ("review", "scores"),
    [
        ("8 9\nBoth are good.", (8.0, 9.0)),
        ("8, 9", (8.0, 9.0)),
        ("7.5 10\n", (7.5, 10.0)),
        ("8", None),
        ("8 9 10", None),
        ("Scores: 8 9", None),
        ("0 5", None),
        ("8 11", None),
        ("", None),
    ],
)
def test_two_scores_are_read_from_the_first_line(review: str, scores: tuple[float, float] | None) -> None:
    assert read_scores(review) == scores


def test_both_orders_are_asked_and_averaged(llava_bench: LlavaBench) -> None:
    answers = {"0": "Mine."}
    first, second = llava_bench.judge_questions(answers)
    assert (first.swapped, second.swapped) == (False, True)
    # A judge that gives the first answer 8 and the second 6 whatever they are: position bias and nothing else.
    reviews = {("0", False): Review("8 6"), ("0", True): Review("8 6")}
    assert figures_of(llava_bench.score(answers, reviews))["conv"] == 100.0


def test_the_relative_score_is_a_ratio_of_means(llava_bench: LlavaBench) -> None:
    answers = {"0": "Mine.", "1": "Mine."}
    reviews = {
        ("0", False): Review("8 4"),
        ("0", True): Review("4 8"),
        ("1", False): Review("10 9"),
        ("1", True): Review("7 10"),
    }
    figures = figures_of(llava_bench.score(answers, reviews))
    assert figures["conv"] == 50.0
    assert figures["detail"] == pytest.approx(80.0)
    assert figures["all"] == pytest.approx((4 + 8) / (8 + 10) * 100)
    assert figures["complex"] is None


def test_an_answer_counts_only_with_both_reviews(llava_bench: LlavaBench) -> None:
    scores = llava_bench.score({"0": "Mine."}, {("0", False): Review("8 6"), ("0", True): Review("Hm.")})
    assert scores.counts == {"unanswered": 2, "unrated": 1}
    assert figures_of(scores)["all"] is None


def test_the_judge_sees_the_official_layout(llava_bench: LlavaBench) -> None:
    asked = llava_bench.judge_questions({"1": "Mine."})
    assert asked[0].messages[0]["content"] == (
        "[Context]\nScene 1.\nMore.\n\ndog: [0.1, 0.2, 0.3, 0.4]\n\n[Question]\nQuestion 1?\n\n"
        "[Assistant 1]\nReference 1.\n\n[End of Assistant 1]\n\n[Assistant 2]\nMine.\n\n[End of Assistant 2]\n\n"
        "[System]\nJudge detail.\n\n"
    )
    assert "[Assistant 1]\nMine." in asked[1].messages[0]["content"]


def test_the_wild_set_is_told_by_its_context(tmp_path: Path) -> None:
    wild = LlavaBench(LlavaBenchConfig(path=write_llava_bench(tmp_path / "wild", wild=True)))
    assert wild.settings["set"] == "in the wild"
    assert "[Context]\nScene 0.\n\n[Question]" in wild.judge_questions({"0": "Mine."})[0].messages[0]["content"]


def test_the_system_message_comes_from_the_official_script(tmp_path: Path) -> None:
    folder = Path(write_llava_bench(tmp_path / "llava"))
    (folder / "eval_gpt_review_visual.py").write_text(
        "messages=[{\n    'role': 'system',\n    'content': 'You judge answers.'\n}, {'role': 'user'}]"
    )
    asked = LlavaBench(LlavaBenchConfig(path=str(folder))).judge_questions({"0": "Mine."})
    assert asked[0].messages[0] == {"role": "system", "content": "You judge answers."}


def test_a_question_without_a_reference_is_refused(tmp_path: Path) -> None:
    folder = Path(write_llava_bench(tmp_path / "llava"))
    (folder / "qa90_gpt4_answer.jsonl").write_text('{"question_id": 0, "text": "One."}\n')
    with pytest.raises(UserError, match="question 1 has no reference answer"):
        LlavaBench(LlavaBenchConfig(path=str(folder)))
