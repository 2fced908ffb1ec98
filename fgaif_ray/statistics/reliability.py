"""Reliability of labels: chance-corrected agreement, with bootstrap intervals clustered by image.

Every metric follows from sums over segments (a confusion or a coincidence matrix), so that resampling images means
weighting their sums. Units may carry weights: a stratified sample then speaks for the set that it was drawn from.

Cohen, "A coefficient of agreement for nominal scales", 1960; Krippendorff, "Computing Krippendorff's
Alpha-Reliability", 2011 (nominal metric, any number of annotators, missing values).
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from fgaif_ray.statistics.agreement import accuracy, balanced_accuracy, chance_corrected, cohens_kappa
from fgaif_ray.statistics.intervals import DRAWS, Estimate, Floats, estimate_figures, ratios

MISSING: Final = -1
"""Stands for a missing rating, in place of a class code."""
FIGURES: Final = ("accuracy", "balanced_accuracy", "kappa")


def coincidences(ratings: ArrayLike, classes: int) -> Floats:
    """Return each unit's share of Krippendorff's coincidence matrix: its pairs of ratings, each ``1 / (raters - 1)``.

    Args:
        ratings: ``[annotators, units]`` class codes, MISSING where there is none.
        classes: number of classes.

    Returns:
        ``[units, classes, classes]``, all zero for a unit with less than two ratings, which cannot be paired.

    Raises:
        ValueError: not two-dimensional, or a code out of range.
    """
    codes = np.asarray(ratings, dtype=np.int64)
    if codes.ndim != 2:
        raise ValueError(f"need ratings of shape [annotators, units], got {codes.shape}")
    if np.any((codes < MISSING) | (codes >= classes)):
        raise ValueError(f"class codes must lie in [0, {classes}), or be {MISSING} where there is none")
    counts = (codes[:, :, None] == np.arange(classes)).sum(axis=0).astype(np.float64)  # [units, classes]
    raters = counts.sum(axis=1)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(classes)
    shares: Floats = np.divide(
        pairs, (raters - 1)[:, None, None], out=np.zeros_like(pairs), where=raters[:, None, None] > 1
    )
    return shares


def krippendorff_alpha(coincidence: ArrayLike) -> Floats:
    """Return Krippendorff's alpha for nominal data; NaN where nothing can be paired or only one class occurs.

    Args:
        coincidence: ``[..., classes, classes]`` sums of ``coincidences`` over units.

    Returns:
        ``[...]``
    """
    table = np.asarray(coincidence, dtype=np.float64)
    values = table.sum(axis=-1)  # [..., classes]
    total = values.sum(axis=-1)
    # Drawn without replacement: of a class with n values, n - 1 are left to pair with (weights may leave n below 1).
    expected = ratios((values * np.maximum(values - 1, 0)).sum(axis=-1), total * (total - 1))
    alpha = chance_corrected(accuracy(table), expected)
    return np.where((values > 0).sum(axis=-1) > 1, alpha, np.nan)


def estimate_agreement(
    clusters: Sequence[str],
    truth: ArrayLike,
    predicted: ArrayLike,
    classes: int,
    *,
    weights: ArrayLike | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> dict[str, Estimate]:
    """Estimate the FIGURES of predicted labels against true ones.

    Args:
        clusters: ``[units]`` image of each unit; whole images are drawn with replacement.
        truth: ``[units]`` class codes.
        predicted: ``[units]`` class codes.
        classes: number of classes.
        weights: ``[units]`` how many units each stands for; None is one each.
        seed: seed of the draws.
        draws: bootstrap samples.

    Raises:
        ValueError: different lengths, or a code out of range.
    """
    true_codes, predicted_codes = (np.asarray(codes, dtype=np.int64) for codes in (truth, predicted))
    if true_codes.shape != predicted_codes.shape or true_codes.shape != (len(clusters),):
        raise ValueError(f"need one true and one predicted label for each of {len(clusters)} units")
    if np.any((true_codes < 0) | (true_codes >= classes) | (predicted_codes < 0) | (predicted_codes >= classes)):
        raise ValueError(f"class codes must lie in [0, {classes})")
    columns = np.eye(classes * classes)[true_codes * classes + predicted_codes] * _weights(weights, len(clusters))

    def figures(sums: Floats) -> Floats:
        confusion = sums.reshape(-1, classes, classes)
        return np.stack([accuracy(confusion), balanced_accuracy(confusion), cohens_kappa(confusion)], axis=1)

    estimates = estimate_figures(clusters, columns, figures, seed=seed, draws=draws)
    return dict(zip(FIGURES, estimates, strict=True))


def estimate_alpha(
    clusters: Sequence[str],
    ratings: ArrayLike,
    classes: int,
    *,
    weights: ArrayLike | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> Estimate:
    """Estimate Krippendorff's alpha of ``[annotators, units]`` ratings; other arguments as in ``estimate_agreement``.

    Raises:
        ValueError: different lengths, or a code out of range.
    """
    shares = coincidences(ratings, classes)
    if len(shares) != len(clusters):
        raise ValueError(f"need ratings of {len(clusters)} units, got {len(shares)}")
    columns = shares.reshape(len(shares), classes * classes) * _weights(weights, len(clusters))

    def figures(sums: Floats) -> Floats:
        return krippendorff_alpha(sums.reshape(-1, classes, classes))[:, None]

    return estimate_figures(clusters, columns, figures, seed=seed, draws=draws)[0]


def _weights(weights: ArrayLike | None, units: int) -> Floats:
    """``[units, 1]``"""
    values = np.ones(units) if weights is None else np.asarray(weights, dtype=np.float64)
    if values.shape != (units,):
        raise ValueError(f"need a weight for each of {units} units, got {values.shape}")
    return values[:, None]
