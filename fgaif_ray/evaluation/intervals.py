"""Ratios over images with bootstrap intervals.

Sub-sentences of one image hang together, so images are what is drawn, not sub-sentences (a cluster bootstrap).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

CONFIDENCE: Final = 0.95
DRAWS: Final = 2000
_DRAWS_AT_ONCE: Final = 250


@dataclass(frozen=True, slots=True)
class Estimate:
    """A ratio of sums and the interval of its bootstrap distribution; None where its denominator is zero.

    Example: ``Estimate(0.25, (0.2, 0.3))``
    """

    value: float | None
    interval: tuple[float, float] | None


def estimate_ratios(
    clusters: Sequence[str],
    parts: Mapping[str, Sequence[float]],
    wholes: Mapping[str, Sequence[float]],
    *,
    seed: int = 0,
    draws: int = DRAWS,
    confidence: float = CONFIDENCE,
) -> dict[str, Estimate]:
    """Estimate ``sum(part) / sum(whole)`` of several figures with percentile bootstrap intervals.

    Args:
        clusters: ``[rows]`` the cluster (image) of each row; whole clusters are drawn with replacement.
        parts: figure -> ``[rows]`` what is counted.
        wholes: figure -> ``[rows]`` what it is counted out of.
        seed: seed of the draws; equal arguments give equal intervals.
        draws: bootstrap samples.
        confidence: probability that the interval encloses.

    Raises:
        ValueError: figures or lengths differ, or the confidence is not inside (0, 1).
    """
    if list(parts) != list(wholes) or any(
        len(column) != len(clusters) for column in (*parts.values(), *wholes.values())
    ):
        raise ValueError("every figure needs a part and a whole for each row")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie inside (0, 1), not {confidence}")
    if not clusters or not parts:
        return dict.fromkeys(parts, Estimate(None, None))
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    count = int(index.max()) + 1
    columns = np.array([*parts.values(), *wholes.values()], dtype=np.float64).T  # [rows, 2 * figures]
    totals = np.zeros((count, columns.shape[1]))  # [clusters, 2 * figures]
    np.add.at(totals, index, columns)
    values = _divide(totals.sum(axis=0, keepdims=True))[0]  # [figures]
    generator = np.random.default_rng(seed)
    sampled = []
    for start in range(0, draws, _DRAWS_AT_ONCE):
        size = min(_DRAWS_AT_ONCE, draws - start)
        weights = generator.multinomial(count, np.full(count, 1 / count), size=size)  # [size, clusters]
        sampled.append(_divide(weights @ totals))
    ratios = np.concatenate(sampled)  # [draws, figures]
    tail = (1 - confidence) / 2
    estimates = {}
    for column, (name, value) in enumerate(zip(parts, values.tolist(), strict=True)):
        defined = ratios[:, column][~np.isnan(ratios[:, column])]
        if np.isnan(value):
            estimates[name] = Estimate(None, None)
        else:
            low, high = np.quantile(defined, [tail, 1 - tail]).tolist()
            estimates[name] = Estimate(value, (low, high))
    return estimates


def _divide(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[rows, 2 * figures]`` sums to ``[rows, figures]`` ratios, NaN where the whole is zero."""
    parts, wholes = np.split(sums, 2, axis=1)
    return np.divide(parts, wholes, out=np.full_like(parts, np.nan), where=wholes > 0)
