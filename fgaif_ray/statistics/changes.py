"""Changes of ratios between two sets of rows about the same images, with paired bootstrap intervals.

Each bootstrap sample draws the same images for both sets, so what makes an image hard for both does not widen the
interval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgaif_ray.statistics.intervals import Estimate, Floats, estimate_figures, ratios


@dataclass(frozen=True, slots=True)
class CountedRows:
    """What is counted in each row, and out of what.

    Example: ``CountedRows(("a.png", "b.png"), {"rate": (1, 0)}, {"rate": (4, 5)})``
    """

    clusters: Sequence[str]
    """``[rows]`` the cluster (image) of each row."""
    parts: Mapping[str, Sequence[float]]
    """Metric -> ``[rows]`` what is counted."""
    wholes: Mapping[str, Sequence[float]]
    """Metric -> ``[rows]`` what it is counted out of."""

    def columns(self, shared: frozenset[str]) -> tuple[list[str], Floats]:
        """The rows of some clusters: their clusters, and ``[rows, 2 * metrics]`` parts, then wholes."""
        kept = [row for row, cluster in enumerate(self.clusters) if cluster in shared]
        table = np.array([*self.parts.values(), *self.wholes.values()], dtype=np.float64).T
        return [self.clusters[row] for row in kept], table[kept]


def estimate_changes(before: CountedRows, after: CountedRows, *, seed: int = 0) -> dict[str, Estimate]:
    """Estimate ``ratio(after) - ratio(before)`` of each metric over the clusters that both have.

    Args:
        before: the rows before; metrics are those of both.
        after: the rows after; a cluster may have another number of rows here.
        seed: seed of the draws; equal arguments give equal intervals.

    Raises:
        ValueError: the metrics differ.
    """
    if list(before.parts) != list(after.parts):
        raise ValueError("both sides need the same metrics")
    shared = frozenset(before.clusters) & frozenset(after.clusters)
    if not shared or not before.parts:
        return dict.fromkeys(before.parts, Estimate(None, None))
    sides = [side.columns(shared) for side in (before, after)]
    width = 2 * len(before.parts)
    rows: NDArray[np.float64] = np.zeros((sum(len(names) for names, _ in sides), 2 * width))
    start = len(sides[0][0])
    rows[:start, :width], rows[start:, width:] = sides[0][1], sides[1][1]

    def differences(sums: Floats) -> Floats:
        old, new = np.split(sums, 2, axis=1)
        return ratios(*np.split(new, 2, axis=1)) - ratios(*np.split(old, 2, axis=1))

    estimates = estimate_figures([*sides[0][0], *sides[1][0]], rows, differences, seed=seed)
    return dict(zip(before.parts, estimates, strict=True))
