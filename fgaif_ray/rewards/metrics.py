"""Metrics of a reward model on held-out images: ranking, calibration, and the temperature that improves it."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from fgaif_ray.records import CLASS_NAMES, CONSISTENT, HALLUCINATED
from fgaif_ray.statistics.agreement import agreement
from fgaif_ray.statistics.calibration import expected_calibration_error, reliability_bins
from fgaif_ray.statistics.folds import image_folds

CALIBRATION_FOLDS: Final = 5
DECILES: Final = 10
LARGEST_TEMPERATURE: Final = 10.0
"""Bound of the temperature and its inverse; a set predicted without a mistake has no finite best temperature."""


def negative_log_likelihood(probabilities: NDArray[Any], labels: ArrayLike) -> float:
    """Return the mean negative log-probability of the true class, in nats."""
    truth = np.asarray(labels)
    return float(-_log(probabilities)[np.arange(len(truth)), truth].mean())


def area_under_roc(scores: ArrayLike, positive: ArrayLike) -> float | None:
    """Return the chance that a positive outranks a negative, ties counting half (the Mann-Whitney statistic).

    Args:
        scores: ``[items]``, larger for what is more likely positive.
        positive: ``[items]`` booleans.

    Returns:
        None where all items are positive, or none is.
    """
    chosen = np.asarray(positive, dtype=bool)
    count, others = int(chosen.sum()), int((~chosen).sum())
    if not count or not others:
        return None
    _, inverse, counts = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # [items] from 1, ties share their mean
    return float((ranks[chosen].sum() - count * (count + 1) / 2) / (count * others))


def ranking_figures(probabilities: NDArray[Any], labels: ArrayLike) -> dict[str, float | None]:
    """Return the area under the ROC curve of each class against the rest, and of hallucinated against consistent.

    The latter is about facts only: verdicts whose label is absent are left out, and the score is
    P(hallucinated) / P(consistent).
    """
    truth = np.asarray(labels)
    figures = {name: area_under_roc(probabilities[:, code], truth == code) for code, name in enumerate(CLASS_NAMES)}
    facts = np.isin(truth, (CONSISTENT, HALLUCINATED))
    log = _log(probabilities[facts])
    odds = log[:, HALLUCINATED] - log[:, CONSISTENT]
    return figures | {"hallucinated_vs_consistent": area_under_roc(odds, truth[facts] == HALLUCINATED)}


def fit_temperature(probabilities: NDArray[Any], labels: ArrayLike) -> float:
    """Fit the temperature that makes the labels most likely (Guo et al. 2017, section 4.2), found by L-BFGS.

    Args:
        probabilities: ``[verdicts, classes]``; their logarithms are the logits up to a constant, which does not matter.
        labels: ``[verdicts]`` class codes.

    Returns:
        At most ``LARGEST_TEMPERATURE``, at least its inverse; above 1 if the model is overconfident.
    """
    logits = torch.from_numpy(_log(probabilities))  # [verdicts, classes]
    truth = torch.as_tensor(np.asarray(labels), dtype=torch.int64)
    bound = float(np.log(LARGEST_TEMPERATURE))
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(logits / log_temperature.clamp(-bound, bound).exp(), truth)
        loss.backward()
        return float(loss.detach())

    with torch.enable_grad():
        optimiser.step(closure)
    return float(log_temperature.detach().clamp(-bound, bound).exp())


def scale_probabilities(probabilities: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """Divide the logits of distributions by a temperature, ``[verdicts, classes]``."""
    scaled: NDArray[np.float64] = torch.from_numpy(_log(probabilities) / temperature).softmax(dim=-1).numpy()
    return scaled


def cross_fitted_probabilities(
    probabilities: NDArray[Any], labels: ArrayLike, images: Sequence[str]
) -> NDArray[np.float64] | None:
    """Scale probabilities, each with a temperature that was fitted on other images (of CALIBRATION_FOLDS parts).

    Args:
        probabilities: ``[verdicts, classes]``.
        labels: ``[verdicts]`` class codes.
        images: ``[verdicts]`` the image that each is about.

    Returns:
        ``[verdicts, classes]``; None for a single image.
    """
    if len(set(images)) < 2:
        return None
    fold_of, truth = image_folds(images, CALIBRATION_FOLDS), np.asarray(labels)  # [verdicts] each
    scaled = np.zeros(probabilities.shape, np.float64)
    for fold in np.unique(fold_of):
        inside = fold_of == fold
        temperature = fit_temperature(probabilities[~inside], truth[~inside])
        scaled[inside] = scale_probabilities(probabilities[inside], temperature)
    return scaled


def signed_calibration(probabilities: NDArray[Any], labels: ArrayLike) -> dict[str, Any]:
    """Compare what verdicts pay, P(consistent) - P(hallucinated), with what their labels are worth: +1, -1 or 0.

    Args:
        probabilities: ``[verdicts, classes]``.
        labels: ``[verdicts]`` class codes.

    Returns:
        ``mean_reward`` and ``mean_label`` of all, and ``bins``: DECILES equal parts of the verdicts by what they pay,
        with ``count``, ``reward`` and ``label`` of each.
    """
    truth = np.asarray(labels)
    reward = probabilities[:, CONSISTENT].astype(np.float64) - probabilities[:, HALLUCINATED]  # [verdicts]
    worth = (truth == CONSISTENT).astype(np.float64) - (truth == HALLUCINATED)  # [verdicts]
    parts = [part for part in np.array_split(np.argsort(reward, kind="stable"), DECILES) if len(part)]
    return {
        "mean_reward": float(reward.mean()),
        "mean_label": float(worth.mean()),
        "bins": [
            {"count": len(part), "reward": float(reward[part].mean()), "label": float(worth[part].mean())}
            for part in parts
        ],
    }


def held_out_figures(probabilities: NDArray[Any], labels: ArrayLike, images: Sequence[str]) -> dict[str, Any]:
    """Compute all metrics of one head, JSON-serialisable; a metric that is not defined is None.

    Args:
        probabilities: ``[verdicts, classes]``.
        labels: ``[verdicts]`` class codes.
        images: ``[verdicts]`` the image that each is about.
    """
    truth = np.asarray(labels)
    scaled = cross_fitted_probabilities(probabilities, truth, images)
    return {
        **agreement(truth, probabilities.argmax(axis=1)).to_dict(),
        "majority_class_accuracy": float(np.bincount(truth).max() / len(truth)),
        "auroc": ranking_figures(probabilities, truth),
        "expected_calibration_error": expected_calibration_error(probabilities, truth),
        "expected_calibration_error_scaled": None if scaled is None else expected_calibration_error(scaled, truth),
        "negative_log_likelihood": negative_log_likelihood(probabilities, truth),
        "negative_log_likelihood_scaled": None if scaled is None else negative_log_likelihood(scaled, truth),
        "temperature": fit_temperature(probabilities, truth),
        "signed_calibration": signed_calibration(probabilities, truth),
        "reliability": reliability_bins(probabilities, truth),
        "reliability_scaled": None if scaled is None else reliability_bins(scaled, truth),
    }


def _log(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    logarithms: NDArray[np.float64] = np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny))
    return logarithms
