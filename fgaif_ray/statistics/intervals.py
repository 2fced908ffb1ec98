"""Ratios and other metrics over images with bootstrap intervals.

Segments of one image depend on each other, so the bootstrap draws images, not segments (a cluster bootstrap).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE: Final = 0.95
"""Probability that an interval encloses."""
DRAWS: Final = 2000
_DRAWS_AT_ONCE: Final = 250
_VALUES_AT_ONCE: Final = 2_000_000

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric and the interval of its bootstrap distribution; None where it is not defined.

    Example: ``Estimate(0.25, (0.2, 0.3))``
    """

    value: float | None
    interval: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """``value`` and ``interval``, JSON-serialisable."""
        return {"value": self.value, "interval": self.bounds}

    @property
    def bounds(self) -> list[float] | None:
        """The interval, JSON-serialisable."""
        return None if self.interval is None else list(self.interval)


def estimate_ratios(
    clusters: Sequence[str],
    parts: Mapping[str, Sequence[float]],
    wholes: Mapping[str, Sequence[float]],
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> dict[str, Estimate]:
    """Estimate ``sum(part) / sum(whole)`` of several metrics with percentile bootstrap intervals.

    Args:
        clusters: ``[rows]`` the cluster (image) of each row; whole clusters are drawn with replacement.
        parts: figure -> ``[rows]`` what is counted.
        wholes: figure -> ``[rows]`` what it is counted out of.
        seed: seed of the draws; equal arguments give equal intervals.
        draws: bootstrap samples.

    Raises:
        ValueError: metrics or lengths differ.
    """
    if list(parts) != list(wholes) or any(
        len(column) != len(clusters) for column in (*parts.values(), *wholes.values())
    ):
        raise ValueError("every metric needs a part and a whole for each row")
    if not parts:
        return {}
    columns = np.array([*parts.values(), *wholes.values()], dtype=np.float64).T  # [rows, 2 * figures]
    estimates = estimate_figures(clusters, columns, _halves, seed=seed, draws=draws)
    return dict(zip(parts, estimates, strict=True))


def estimate_figures(
    clusters: Sequence[str],
    columns: Floats,
    figures: Callable[[Floats], Floats],
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> list[Estimate]:
    """Estimate metrics that follow from sums over rows, with percentile bootstrap intervals.

    Args:
        clusters: ``[rows]`` the cluster (image) of each row; whole clusters are drawn with replacement.
        columns: ``[rows, columns]`` what is summed.
        figures: ``[samples, columns]`` sums to ``[samples, figures]`` values, NaN where one is not defined.
        seed: seed of the draws; equal arguments give equal intervals.
        draws: bootstrap samples; those in which a metric is not defined do not count for it.

    Raises:
        ValueError: lengths differ.
    """
    if columns.ndim != 2 or len(columns) != len(clusters):
        raise ValueError(f"need a row of columns for each of {len(clusters)} rows, got {columns.shape}")
    if not clusters:
        return [Estimate(None, None)] * figures(np.zeros((1, columns.shape[1]))).shape[1]
    count, index = _numbered(clusters)
    totals = np.zeros((count, columns.shape[1]))  # [clusters, columns]
    np.add.at(totals, index, columns)
    values = figures(totals.sum(axis=0, keepdims=True))[0]  # [figures]
    drawn = np.concatenate([figures(weights @ totals) for weights in _draws(count, draws, seed, _DRAWS_AT_ONCE)])
    return _percentiles(values, drawn)


def estimate_weighted(clusters: Sequence[str], figures: Callable[[Floats], Floats], *, seed: int = 0) -> list[Estimate]:
    """Estimate metrics that do not follow from sums, such as ranks, with percentile bootstrap intervals.

    Args:
        clusters: ``[rows]`` the cluster (image) of each row, at least one; whole clusters are drawn with replacement.
        figures: ``[samples, rows]`` how often each row was drawn to ``[samples, figures]`` values, NaN where one is not
            defined.
        seed: seed of the draws; equal arguments give equal intervals.
    """
    count, index = _numbered(clusters)
    values = figures(np.ones((1, len(index))))[0]
    at_once = max(1, min(_DRAWS_AT_ONCE, _VALUES_AT_ONCE // len(index)))
    weights = _draws(count, DRAWS, seed, at_once)
    drawn = np.concatenate([figures(of_clusters[:, index].astype(np.float64)) for of_clusters in weights])
    return _percentiles(values, drawn)


def _numbered(clusters: Sequence[str]) -> tuple[int, NDArray[np.intp]]:
    """How many clusters there are, and the number of each row's."""
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    return int(index.max()) + 1, index


def _draws(count: int, draws: int, seed: int, at_once: int) -> Iterator[NDArray[np.int64]]:
    """Yield how often each cluster was drawn, ``[at most at_once, clusters]``."""
    generator = np.random.default_rng(seed)
    for start in range(0, draws, at_once):
        yield generator.multinomial(count, np.full(count, 1 / count), size=min(at_once, draws - start))


def _percentiles(values: Floats, drawn: Floats) -> list[Estimate]:
    """Make estimates of ``[figures]`` values and ``[draws, figures]`` ones."""
    tail = (1 - CONFIDENCE) / 2
    estimates = []
    for column, value in enumerate(values.tolist()):
        defined = drawn[:, column][~np.isnan(drawn[:, column])]
        if np.isnan(value):
            estimates.append(Estimate(None, None))
        elif not len(defined):
            estimates.append(Estimate(value, None))
        else:
            low, high = np.quantile(defined, [tail, 1 - tail]).tolist()
            estimates.append(Estimate(value, (low, high)))
    return estimates


def wilson_interval(share: float, trials: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share; 95 % with the default z (Wilson, "Probable inference", 1927)."""
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * (share * (1 - share) / trials + z * z / (4 * trials * trials)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def ratios(parts: ArrayLike, wholes: ArrayLike) -> Floats:
    """Parts of wholes, of the shape that both broadcast to; NaN where the whole is zero or less."""
    # Sums of floats that should cancel leave a rest far below any real whole.
    known = np.asarray(wholes) > 1e-12
    shape = np.broadcast_shapes(np.shape(parts), np.shape(wholes))
    found: Floats = np.divide(parts, wholes, out=np.full(shape, np.nan), where=known)
    return found


def _halves(sums: Floats) -> Floats:
    """``[samples, 2 * figures]`` sums to ``[samples, figures]`` ratios."""
    return ratios(*np.split(sums, 2, axis=1))
