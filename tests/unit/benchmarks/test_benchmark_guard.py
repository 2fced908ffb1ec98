"""What the guard's modes make of sampled answers, by the truth of a scene."""

from pathlib import Path

import pytest

from benchmarks.guard import Question, Sampled, rows_of
from fgaif_ray.config import load_config
from fgaif_ray.guard.judgement import AnswerJudgement, SegmentJudgement
from fgaif_ray.segments import split_segments
from fgaif_ray.shapes.scenes import draw_scene

RIGHT = "There is a small red circle."
WRONG = "There is a large green square."
"""Of the scene below."""


def judged(text: str) -> AnswerJudgement:
    """As a reward model without mistakes says it."""
    segments = []
    for span in split_segments(text):
        words = text[span.start : span.end]
        false = 1.0 if WRONG in words else 0.0
        segments.append(
            SegmentJudgement(words, span.start, span.end, {"existence": (0.0, 1 - false, false)}, 1 - 2 * false)
        )
    return AnswerJudgement(tuple(segments), sum(one.reward for one in segments), None)


@pytest.fixture(scope="module")
def rows(repository: Path) -> dict[str, dict[str, float]]:
    texts = [f"{RIGHT} {WRONG}", RIGHT]
    config = load_config(repository / "configs/shapes.yaml")
    questions = [Question("0.png", "Describe it.", draw_scene("train", 0))]
    return rows_of(config, "base", questions, [Sampled(texts, [True, True], 30)], [[judged(text) for text in texts]])


def test_an_answer_is_measured_as_it_came(rows: dict[str, dict[str, float]]) -> None:
    assert (rows["base"]["hallucination"], rows["base"]["tokens"], rows["base"]["scored"]) == (0.5, 15, 0)


def test_what_is_stripped_is_not_in_it_any_more(rows: dict[str, dict[str, float]]) -> None:
    assert rows["base + strip 0.5"]["hallucination"] == 0
    assert rows["base + strip 0.5"]["coverage"] == rows["base"]["coverage"] > 0
    assert rows["base + strip 0.5"]["scored"] == 1


def test_the_best_of_several_costs_all_of_them(rows: dict[str, dict[str, float]]) -> None:
    best = rows["base + best of 2 by reward"]
    assert (best["hallucination"], best["tokens"], best["scored"]) == (0, 30, 2)
