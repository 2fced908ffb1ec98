"""What reward models say about responses, gathered from the batches of their forward passes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fgaif_ray.records import ABSENT, CLASS_NAMES
from fgaif_ray.rewards.kinds import Granularity


@dataclass(frozen=True, slots=True)
class Judged:
    """What reward models say about responses."""

    probabilities: dict[str, list[NDArray[np.float32]]]
    """Per type and response ``[segments, 3]``: absent, consistent, hallucinated."""
    facts: dict[str, list[NDArray[np.float32]]]
    """Per type and response ``[segments, 2]``: expected facts, and false ones where one is (see ``fact_counts``). Types
    without a readout are missing."""
    domain_distances: list[float | None] = field(default_factory=list)
    """Per response, how far its images are from those of training, in units of the threshold (see ``domain``); None of
    a response without segments. Empty where none of the reward models knows."""


@dataclass(frozen=True, slots=True)
class JudgedBatch:
    """What one forward pass says, still on the device: the images of the next one are read meanwhile."""

    responses: list[int]
    """``[batch]`` which responses they are."""
    lengths: list[int]
    """``[batch]`` their segments."""
    probabilities: Mapping[str, Tensor]
    """Per type ``[verdicts, 3]``, one verdict per segment or, of a type that judges responses, per response."""
    facts: Mapping[str, Tensor]
    """Per type with a readout ``[segments, 2]``."""
    domain_distances: Sequence[float | None]
    """``[batch]``; empty where none of the reward models knows."""


def gather(
    batches: Sequence[JudgedBatch],
    responses: int,
    granularity: Mapping[str, Granularity],
    counted: Sequence[str],
    *,
    measured: bool,
) -> Judged:
    """Put what batches say in the order of the responses.

    Args:
        batches: of the responses that have segments.
        responses: how many there are.
        granularity: the fact types and the units of their verdicts.
        counted: those of the types that have a readout of facts.
        measured: whether one of the reward models knows the images of its training.

    Raises:
        ArithmeticError: a score is not finite.
    """
    scores = {name: [np.zeros((0, len(CLASS_NAMES)), np.float32) for _ in range(responses)] for name in granularity}
    facts = {name: [np.zeros((0, 2), np.float32) for _ in range(responses)] for name in counted}
    distances: list[float | None] = [None] * responses
    for batch in batches:
        for name, on_device in batch.probabilities.items():
            verdicts = _finite(on_device, f"the {name} reward model gave a score that is not finite")
            if granularity[name] == "response":
                verdicts = _at_last_segments(verdicts, batch.lengths)
            _place(verdicts, batch, scores[name])
        for name, on_device in batch.facts.items():
            message = f"the {name} reward model gave a number of facts that is not finite"
            _place(_finite(on_device, message), batch, facts[name])
        for index, distance in zip(batch.responses, batch.domain_distances):
            distances[index] = distance
    if not all(one is None or math.isfinite(one) for one in distances):
        raise ArithmeticError("the features of an image are not finite")
    return Judged(scores, facts, distances if measured else [])


def _finite(values: Tensor, message: str) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = values.cpu().numpy()
    if not np.isfinite(numbers).all():
        raise ArithmeticError(message)
    return numbers


def _place(rows: NDArray[np.float32], batch: JudgedBatch, found: list[NDArray[np.float32]]) -> None:
    """Give each response of a batch its rows, ``[segments, ...]``."""
    parts = np.split(rows, np.cumsum(batch.lengths)[:-1])
    for index, part in zip(batch.responses, parts, strict=True):
        found[index] = part


def _at_last_segments(verdicts: NDArray[np.float32], lengths: Sequence[int]) -> NDArray[np.float32]:
    """Place one verdict per response, ``[responses, 3]``, at the last of its segments, ``[segments, 3]``."""
    rows = np.zeros((sum(lengths), len(CLASS_NAMES)), np.float32)
    rows[:, ABSENT] = 1.0
    rows[np.cumsum(lengths) - 1] = verdicts
    return rows
