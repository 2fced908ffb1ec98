"""Kinds of reward models: one per fact type, one with a head per type, or one with a single verdict per response.

Whatever the kind, a run's ``rewards/`` holds one folder per fact type, each a reward model by itself. If folders
hold the same adapter, its forward pass runs once for all of them (see ``files``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from fgaif_ray.records import ABSENT, CONSISTENT, HALLUCINATED, NOVELTY_TYPE

IGNORED: Final = -100
"""Code of a label that is not to be learnt; cross-entropy ignores it by default."""

RewardKind = Literal["separate", "multitask", "coarse"]
Granularity = Literal["segment", "response"]
"""Unit of one verdict: a segment, or the whole response, read at its last separator."""

COARSE: Final = "coarse"
MULTITASK: Final = "multitask"


@dataclass(frozen=True, slots=True)
class RewardTask:
    """One adapter and the heads that are trained with it.

    Example: ``RewardTask("multitask", ("existence", "relation"), ("existence", "relation"))``
    """

    name: str
    """Name of the adapter during training."""
    heads: tuple[str, ...]
    fact_types: tuple[str, ...]
    """The folders that it is saved to."""
    granularity: Granularity = "segment"

    def head_of(self, fact_type: str) -> str:
        """Return the head that answers for a fact type."""
        return fact_type if fact_type in self.heads else self.heads[0]


def reward_tasks(kind: RewardKind, types: tuple[str, ...]) -> tuple[RewardTask, ...]:
    """List the tasks of a kind of reward model for these fact types, in order of training."""
    if kind == "multitask":
        return (RewardTask(MULTITASK, types, types),)
    if kind == "coarse":
        return (RewardTask(COARSE, (COARSE,), types, "response"),)
    return tuple(RewardTask(name, (name,), (name,)) for name in types)


def response_label(labels: Mapping[str, tuple[int, ...]]) -> int:
    """Derive the label of a response from those of its segments.

    One hallucinated segment of any type makes the response hallucinated, even if other labels are unknown.
    Otherwise it is unknown if any of them is; consistent if there is a fact; and absent if there is none, because a
    response that states nothing must not be paid like one that is right. What repeats is not false: novelty does not
    count.

    Args:
        labels: fact type -> ``[segments]`` class codes, or ``IGNORED``.
    """
    codes = {code for name, of_type in labels.items() if name != NOVELTY_TYPE for code in of_type}
    if HALLUCINATED in codes:
        return HALLUCINATED
    if IGNORED in codes:
        return IGNORED
    return CONSISTENT if CONSISTENT in codes else ABSENT
