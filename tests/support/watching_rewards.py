"""Reward models that note what images they are shown, and an answer for them to judge."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from fgaif_ray.evaluation.rows import EvaluationAnswer
from fgaif_ray.rewards.encoding import ScoringItem
from fgaif_ray.rewards.judged import Judged
from support.reward_helpers import PROMPT


class WatchingRewards:
    """Take every segment for consistent, and note something of every image."""

    def __init__(self, look: Callable[[Image], Any]) -> None:
        self.seen: list[Any] = []
        self._look = look

    def encode(self, item: ScoringItem) -> ScoringItem:
        self.seen += map(self._look, item.images)
        return item

    def judge_encoded(self, kinds: Sequence[str], items: Sequence[ScoringItem]) -> Judged:
        scores = [np.array([[0.0, 1.0, 0.0]] * len(item.segments), np.float32) for item in items]
        return Judged(dict.fromkeys(kinds, scores), {})

    def score_types(self, kinds: Sequence[str], items: Sequence[ScoringItem]) -> dict[str, list[NDArray[np.float32]]]:
        return self.judge_encoded(kinds, [self.encode(item) for item in items]).probabilities


def answer_about(image: Path, which: str) -> EvaluationAnswer:
    return EvaluationAnswer.from_row(
        {
            "id": which,
            "which": which,
            "task": "sampled",
            "image": str(image),
            "prompt": PROMPT,
            "temperature": 1.0,
            "max_tokens": 8,
            "seed": 0,
            "response": "There is a red circle.",
            "tokens": 6,
            "finish_reason": "stop",
        }
    )
