"""How verdicts are shared out over models: one per fact type, one with a head per type, or one verdict per response.

Whatever the kind, a run's ``rewards/`` holds one folder per fact type, each a reward model by itself. Where folders
hold the same adapter, whoever loads them runs it once for all of them (see ``reward_files``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from fgaif_ray.records import ABSENT, CONSISTENT, FACT_TYPES, HALLUCINATED

IGNORED: Final = -100
"""In place of a label that is not to be learnt; cross-entropy leaves it out by default."""

RewardKind = Literal["separate", "multitask", "coarse"]
Granularity = Literal["segment", "response"]
"""What one verdict is about: a sub-sentence, or the whole response, read at its last separator."""

COARSE: Final = "coarse"
MULTITASK: Final = "multitask"


@dataclass(frozen=True, slots=True)
class RewardTask:
    """One adapter and the heads that are trained with it.

    Example: ``RewardTask("multitask", ("existence", "relation"), ("existence", "relation"))``
    """

    name: str
    """Of the adapter while it is trained."""
    heads: tuple[str, ...]
    fact_types: tuple[str, ...]
    """The folders that it fills."""
    granularity: Granularity = "segment"

    def head_of(self, fact_type: str) -> str:
        """The head that answers for a fact type."""
        return fact_type if fact_type in self.heads else self.heads[0]


def reward_tasks(kind: RewardKind, types: tuple[str, ...] = FACT_TYPES) -> tuple[RewardTask, ...]:
    """What is trained for a kind of reward model and these fact types, in this order."""
    if kind == "multitask":
        return (RewardTask(MULTITASK, types, types),)
    if kind == "coarse":
        return (RewardTask(COARSE, (COARSE,), types, "response"),)
    return tuple(RewardTask(name, (name,), (name,)) for name in types)


def response_label(labels: Mapping[str, tuple[int, ...]]) -> int:
    """The one label of a response, from those of its sub-sentences.

    One hallucinated sub-sentence of any type makes the response hallucinated, even where other labels are not known.
    Otherwise it is not known where any of them is not; consistent where there is a fact; and absent where there is
    none: a response that states nothing must not be paid like one that is right.

    Args:
        labels: fact type -> ``[segments]`` class codes, or ``IGNORED``.
    """
    codes = {code for of_type in labels.values() for code in of_type}
    if HALLUCINATED in codes:
        return HALLUCINATED
    if IGNORED in codes:
        return IGNORED
    return CONSISTENT if CONSISTENT in codes else ABSENT
