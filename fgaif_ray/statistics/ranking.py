"""How well scores rank positives above negatives, for many weightings of the same items at once (a bootstrap)."""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fgaif_ray.statistics.intervals import Floats, ratios

RANKING: Final = ("auroc", "average_precision")


class Ranking:
    """Items in the order of their scores.

    Example: ``Ranking([0.9, 0.2], [True, False]).figures(np.ones((1, 2)))`` is ``[[1, 1]]``.
    """

    def __init__(self, scores: ArrayLike, positive: ArrayLike) -> None:
        """Args:
        scores: ``[items]``, larger for what is more likely positive.
        positive: ``[items]`` booleans.
        """
        values = np.asarray(scores, dtype=np.float64)
        self._order: NDArray[np.intp] = np.argsort(-values, kind="stable")
        ordered = values[self._order]
        self._starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        """Where runs of equal scores begin."""
        self._positive = np.asarray(positive, dtype=bool)[self._order]

    def figures(self, weights: Floats) -> Floats:
        """Compute the area under the ROC curve, ties counting half, and the average precision.

        The average precision is the sum over thresholds of the precision times the recall gained there, equal scores
        being one threshold; its chance level is the share of positives.

        Args:
            weights: ``[samples, items]`` how often each item counts.

        Returns:
            ``[samples, 2]`` in the order of ``RANKING``, NaN without a positive or (the area) without a negative.
        """
        ordered = weights[:, self._order]
        positives = np.add.reduceat(ordered * self._positive, self._starts, axis=1)  # [samples, thresholds]
        negatives = np.add.reduceat(ordered * ~self._positive, self._starts, axis=1)
        hits, alarms = positives.cumsum(axis=1), negatives.cumsum(axis=1)
        below = alarms[:, -1:] - alarms  # negatives that score less
        area = (positives * (below + negatives / 2)).sum(axis=1)
        precision = np.nan_to_num(ratios(hits, hits + alarms))
        return np.stack(
            [
                ratios(area, hits[:, -1] * alarms[:, -1]),
                ratios((positives * precision).sum(axis=1), hits[:, -1]),
            ],
            axis=1,
        )
