"""How many facts a segment states, as the training labels tell: what pay per fact needs beside verdicts.

A verdict says of a segment that it has facts of a type, and whether one of them is false, not how many there are. Two
readouts of a reward model's own states estimate that: the facts of the type in a segment that has any, and those of
them that are false where one is. They read the sum of the states of the segment's tokens, since facts add up over what
states them; at the separator alone a model that has learnt verdicts keeps little of numbers. They are fitted after
training, by ridge regression on the same training images, and change no verdict.

    pay = P(consistent) * facts + P(hallucinated) * (facts - 2 * false)        which is P(c) - P(h) for a single fact

So it does not matter how facts are cut into segments: three true facts in one clause earn what three short sentences
earn, and two false ones in one clause cost two.

What it cannot do:

* say *which* fact is false: all of a segment is paid at its end;
* count what the extraction does not: a claim that it leaves out is neither paid nor charged, and one that it finds
  twice is paid twice;
* be more than an estimate. A linear readout is rough (the card says by how much), it knows such segments as it was
  fitted on, and a policy that learns against it may find phrasings that it counts too high;
* work with ``rewards.kind: coarse``, which judges no segment, or for types whose labels are derived without facts:
  those are paid as one fact.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from fgaif_ray.records import Segment

RIDGES: Final = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Penalties that are tried, in units of the states' mean variance; the held-out images choose."""
TARGETS: Final = ("facts", "false_facts")


def labelled_counts(segment: Segment, fact_type: str) -> tuple[int, int]:
    """Count a type's facts and the false ones among them, as few as fit a label that says that there are any.

    A label may have been replaced (by a person, by noise) and say more than the facts do.
    """
    verdicts = [fact.consistent for fact in segment.facts if fact.type == fact_type]
    facts = max(len(verdicts), 1)
    return facts, max(facts - sum(verdicts), 1) if verdicts else 1


def bounded(raw: Tensor) -> Tensor:
    """Bring readouts to what is possible: at least one fact, at least one of them false, and no more than there are.

    Args:
        raw: ``[segments, 2]`` of a readout: facts, and those that are false where one is.
    """
    facts = raw[..., 0].clamp(min=1.0)
    return torch.stack([facts, raw[..., 1].clamp(min=1.0).minimum(facts)], dim=-1)


@dataclass
class Moments:
    """Sums over segments from which a linear regression and its squared error follow, float64; they add up."""

    outer: Tensor
    """``[1 + hidden, 1 + hidden]`` of the states, with a one before each."""
    cross: Tensor
    """``[1 + hidden]`` of states and counts."""
    square: Tensor
    """``[]`` of the squared counts."""

    @classmethod
    def empty(cls, hidden: int, device: torch.device) -> "Moments":
        """Sums over nothing."""
        shapes = ((hidden + 1, hidden + 1), (hidden + 1,), ())
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def add(self, states: Tensor, counts: Tensor) -> None:
        """Add segments: ``[segments, hidden]`` and ``[segments]``."""
        ones = states.new_ones(len(states), 1)
        inputs, wanted = torch.cat([ones, states], dim=1).double(), counts.double()
        self.outer += inputs.T @ inputs
        self.cross += inputs.T @ wanted
        self.square += wanted.square().sum()

    @property
    def count(self) -> float:
        """Segments."""
        return float(self.outer[0, 0])

    @property
    def mean(self) -> float:
        """Mean count; 1 of nothing."""
        return float(self.cross[0]) / self.count if self.count else 1.0

    def squared_error(self, weights: Tensor) -> float:
        """Mean squared error of a regression, ``[1 + hidden]`` with the constant first."""
        total = weights @ self.outer @ weights - 2 * weights @ self.cross + self.square
        return max(float(total), 0.0) / max(self.count, 1.0)

    def mean_of(self, weights: Tensor) -> float:
        """Mean of what a regression predicts."""
        return float(self.outer[0] @ weights) / self.count if self.count else 1.0

    def solve(self, ridge: float) -> Tensor:
        """Return the regression with a penalty on all weights but the constant, ``[1 + hidden]``."""
        centre = self.outer[0] / self.count  # [1 + hidden] means, of the ones first
        square = self.outer.diagonal()[1:] / self.count
        # Of states that are all alike nothing but rounding is left, relative to their squares.
        variance = max(float((square - centre[1:].square()).mean()), 1e-8 * float(square.mean()), 1e-12)
        penalty = torch.full_like(self.cross, ridge * self.count * variance)
        penalty[0] = 0.0
        found: Tensor = torch.linalg.solve(self.outer + penalty.diag(), self.cross)
        return found


def fit(train: Moments, held_out: Moments) -> Tensor:
    """Return the regression, ``[1 + hidden]``, whose penalty suits the held-out segments best.

    Without segments to fit on it is the constant 1, without held-out ones the one of the largest penalty.
    """
    if not train.count:
        return torch.eye(1, len(train.cross), dtype=torch.float64, device=train.cross.device)[0]
    found = [train.solve(ridge) for ridge in RIDGES]
    return min(found, key=held_out.squared_error) if held_out.count else found[-1]


def quality(weights: Tensor, held_out: Moments) -> dict[str, float | None]:
    """Measure a regression on held-out segments; JSON-serialisable, None without any.

    Returns:
        ``segments``, ``mean`` and ``mean_predicted`` count, ``error`` (root mean square), and ``deviation``, the error
        that the held-out mean would make.
    """
    if not held_out.count:
        return {"segments": 0, "mean": None, "mean_predicted": None, "error": None, "deviation": None}
    deviation = max(float(held_out.square) / held_out.count - held_out.mean**2, 0.0) ** 0.5
    return {
        "segments": int(held_out.count),
        "mean": held_out.mean,
        "mean_predicted": held_out.mean_of(weights),
        "error": held_out.squared_error(weights) ** 0.5,
        "deviation": deviation,
    }


def fit_readout(
    train: Mapping[str, Moments], held_out: Mapping[str, Moments]
) -> tuple[dict[str, Tensor], dict[str, dict[str, float | None]]]:
    """Fit the two readouts of a head.

    Args:
        train: of segments to fit on, over all processes, by what is counted (``TARGETS``).
        held_out: likewise, of those that choose the penalty.

    Returns:
        ``weight [2, hidden]`` and ``bias [2]`` float32, and the ``quality`` of each.
    """
    fitted = {target: fit(train[target], held_out[target]) for target in TARGETS}
    figures = {target: quality(fitted[target], held_out[target]) for target in TARGETS}
    together = torch.stack(list(fitted.values())).float()  # [2, 1 + hidden]
    return {"weight": together[:, 1:].contiguous(), "bias": together[:, 0].contiguous()}, figures
