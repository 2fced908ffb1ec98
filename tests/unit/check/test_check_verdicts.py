"""From probabilities to verdicts, the hallucination score, and what a terminal shows of them."""

import pytest

from fgaif_ray.check.terminal import terminal_lines
from fgaif_ray.check.verdicts import check_response, reached
from fgaif_ray.fact_types import BUILT_IN
from fgaif_ray.serving.wire import CheckedResponse, ScoredResponse, SegmentReward

FALSE = {"existence": (0.1, 0.2, 0.7), "relation": (0.9, 0.05, 0.05), "novelty": (0.0, 0.05, 0.95)}
TRUE = {"existence": (0.1, 0.8, 0.1), "relation": (0.5, 0.2, 0.3), "novelty": (0.0, 0.9, 0.1)}
TEXT = "A red circle. A blue square."


def checked(*odds: dict[str, tuple[float, float, float]], text: str = TEXT, coarse: bool = False) -> CheckedResponse:
    half = len(text) // 2
    segments = [
        SegmentReward(
            start=half * place, end=half * (place + 1), token_end=None, probabilities=one, rewards={}, reward=0.0
        )
        for place, one in enumerate(odds)
    ]
    scored = ScoredResponse(response=text, segments=segments, reward=0.0, token_rewards=None, model_version="v")
    return check_response(scored, BUILT_IN, coarse=coarse)


def test_the_score_is_the_highest_chance_of_a_false_statement() -> None:
    assert checked(TRUE, FALSE).score == 0.7


def test_the_share_is_the_mean_over_segments() -> None:
    assert checked(TRUE, FALSE).expected_share == pytest.approx((0.3 + 0.7) / 2)


def test_what_repeats_does_not_make_a_text_false() -> None:
    assert checked({"existence": (0.1, 0.8, 0.1), "novelty": (0.0, 0.05, 0.95)}).score == 0.1


def test_of_novelty_a_verdict_says_new_or_repeats() -> None:
    found = [segment.types["novelty"].verdict for segment in checked(TRUE, FALSE).segments]
    assert found == ["new", "repeats"]


def test_a_verdict_is_the_likeliest_class_with_its_probability() -> None:
    [segment] = checked(FALSE).segments
    assert (segment.types["existence"].verdict, segment.types["existence"].probability) == ("hallucinated", 0.7)


def test_a_type_that_nothing_is_known_of_is_about_truth() -> None:
    assert checked({"counting": (0.0, 0.4, 0.6)}).score == 0.6


def test_without_a_type_about_truth_there_is_no_score() -> None:
    assert checked({"novelty": (0.0, 0.9, 0.1)}).score is None


def test_a_text_without_segments_says_nothing_false() -> None:
    assert (checked().score, checked().expected_share) == (0.0, 0.0)


def test_verdicts_on_whole_responses_give_no_share_of_segments() -> None:
    assert checked(TRUE, FALSE, coarse=True).expected_share is None


@pytest.mark.parametrize(("threshold", "expected"), [(0.69, True), (0.7, True), (0.71, False)])
def test_a_threshold_is_reached_at_or_above_it(threshold: float, expected: bool) -> None:
    assert reached(checked(FALSE), threshold) is expected


def test_a_terminal_is_shown_every_verdict_with_its_probability() -> None:
    shown = "\n".join(terminal_lines(checked(TRUE, FALSE), None, colour=False))
    assert "existence hallucinated 0.70 · relation absent 0.90 · novelty repeats 0.95" in shown


def test_a_terminal_is_told_whether_the_threshold_is_reached() -> None:
    assert "threshold 0.6: reached" in terminal_lines(checked(FALSE), 0.6, colour=False)[0]


@pytest.mark.parametrize("colour", [False, True])
def test_colours_are_there_where_they_are_asked_for(colour: bool) -> None:
    assert ("\x1b[31m" in "".join(terminal_lines(checked(FALSE), None, colour=colour))) is colour


def test_a_text_cannot_send_commands_to_the_terminal() -> None:
    shown = "".join(terminal_lines(checked(TRUE, text="A \x1b]0;owned\x07 circle. \x9b2J Two."), None, colour=False))
    assert all(letter.isprintable() for letter in shown)
