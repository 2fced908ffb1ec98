"""Whether probabilities mean what they say: reliability diagrams and the expected calibration error.

Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", 2017.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fgaif_ray.statistics.intervals import Estimate, Floats, estimate_figures, ratios

BINS: Final = 15


def reliability_bins(probabilities: NDArray[Any], labels: ArrayLike, bins: int = BINS) -> list[dict[str, float]]:
    """The points of a reliability diagram (figure 1), JSON-serialisable.

    Args:
        probabilities: ``[verdicts, classes]``.
        labels: ``[verdicts]`` class codes.
        bins: number of bins of equal width between confidence 0 and 1.

    Returns:
        ``{"count", "confidence", "accuracy"}`` of each bin with a verdict, by rising confidence; the confidence of a
        verdict is the probability of its most probable class, and both are means over the bin.

    Raises:
        ValueError: no verdict, or another number of labels.
    """
    truth = np.asarray(labels)
    if len(truth) == 0 or len(truth) != len(probabilities):
        raise ValueError(f"need one label for each prediction, got {len(truth)} and {len(probabilities)}")
    confidence = probabilities.max(axis=1).astype(np.float64)  # [verdicts]
    correct = probabilities.argmax(axis=1) == truth  # [verdicts]
    bin_of = _bins(confidence, bins)
    counts = np.bincount(bin_of, minlength=bins)  # [bins]
    sure, right = (np.bincount(bin_of, weights=values, minlength=bins) for values in (confidence, correct))
    return [
        {"count": int(counts[i]), "confidence": float(sure[i] / counts[i]), "accuracy": float(right[i] / counts[i])}
        for i in np.flatnonzero(counts)
    ]


def expected_calibration_error(probabilities: NDArray[Any], labels: ArrayLike) -> float:
    """Mean gap between confidence and accuracy over the ``reliability_bins`` (equation 3); arguments as there."""
    found = reliability_bins(probabilities, labels)
    count = sum(one["count"] for one in found)
    return sum(one["count"] * abs(one["confidence"] - one["accuracy"]) for one in found) / count


def estimate_calibration_error(
    clusters: Sequence[str], probabilities: Floats, outcomes: ArrayLike, weights: Floats, bins: int
) -> Estimate:
    """The expected calibration error of P(yes), with a bootstrap interval.

    Args:
        clusters: ``[items]`` the image of each item; whole images are drawn with replacement.
        probabilities: ``[items]`` P(yes).
        outcomes: ``[items]`` booleans, whether yes was right.
        weights: ``[items]`` how many items each stands for.
        bins: number of bins of equal width between P(yes) 0 and 1.
    """
    inside = np.eye(bins)[_bins(probabilities, bins)]  # [items, bins]
    gaps = inside * ((probabilities - np.asarray(outcomes)) * weights)[:, None]

    def figures(sums: Floats) -> Floats:
        return ratios(np.abs(sums[:, :-1]).sum(axis=1, keepdims=True), sums[:, -1:])

    return estimate_figures(clusters, np.column_stack([gaps, weights]), figures)[0]


def _bins(probabilities: Floats, bins: int) -> NDArray[np.int64]:
    """The bin of each probability, from 0; 1 is in the last."""
    found: NDArray[np.int64] = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    return found
