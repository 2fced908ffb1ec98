"""Agreement of predicted labels with true ones.

Accuracy alone misleads where one class dominates (always "yes" scores 80.7 % on FGAIF's human-labelled
facts), so balanced accuracy and per-class metrics come with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fgaif_ray.records import ABSENT, CLASS_NAMES
from fgaif_ray.statistics.intervals import Floats, ratios


@dataclass(frozen=True)
class Agreement:
    """The metrics of one comparison; None where a metric is not defined."""

    class_names: tuple[str, ...]
    confusion: NDArray[np.int64]
    """``[classes, classes]``, counts; rows are true classes, columns predicted ones."""
    accuracy: float | None
    balanced_accuracy: float | None
    """Mean recall over the classes that occur among the true labels."""
    precision: tuple[float | None, ...]
    """Per class; None for a class that is never predicted."""
    recall: tuple[float | None, ...]
    """Per class; None for a class that never occurs."""

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as JSON-serialisable values, per-class ones by class name."""
        return {
            "count": int(self.confusion.sum()),
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "precision": dict(zip(self.class_names, self.precision, strict=True)),
            "recall": dict(zip(self.class_names, self.recall, strict=True)),
            "support": dict(zip(self.class_names, self.confusion.sum(axis=1).tolist(), strict=True)),
            "confusion": self.confusion.tolist(),
        }


def confusion_matrix(truth: ArrayLike, predicted: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Count pairs (true class, predicted class), ``[classes, classes]``.

    Args:
        truth: ``[items]`` class codes in ``[0, classes)``.
        predicted: ``[items]`` class codes in ``[0, classes)``.
        classes: number of classes.

    Raises:
        ValueError: different lengths, or a code out of range.
    """
    true_codes = np.asarray(truth, dtype=np.int64)
    predicted_codes = np.asarray(predicted, dtype=np.int64)
    if true_codes.ndim != 1 or true_codes.shape != predicted_codes.shape:
        raise ValueError(f"need two lists of one length, got {true_codes.shape} and {predicted_codes.shape}")
    codes = np.concatenate([true_codes, predicted_codes])
    if np.any((codes < 0) | (codes >= classes)):
        raise ValueError(f"class codes must lie in [0, {classes})")
    pairs = np.bincount(true_codes * classes + predicted_codes, minlength=classes * classes)
    return pairs.reshape(classes, classes).astype(np.int64)


def accuracy(confusion: ArrayLike) -> Floats:
    """Share of equal labels; NaN without any.

    Args:
        confusion: ``[..., classes, classes]`` counts or weights, rows are true classes.

    Returns:
        ``[...]``
    """
    table = np.asarray(confusion, dtype=np.float64)
    return ratios(np.trace(table, axis1=-2, axis2=-1), table.sum(axis=(-2, -1)))


def balanced_accuracy(confusion: ArrayLike) -> Floats:
    """Mean recall over the classes that occur among the true labels; shapes as in ``accuracy``."""
    table = np.asarray(confusion, dtype=np.float64)
    support = table.sum(axis=-1)  # [..., classes]
    recall = ratios(np.diagonal(table, axis1=-2, axis2=-1), support)
    occurring = support > 0
    return ratios(np.where(occurring, recall, 0).sum(axis=-1), occurring.sum(axis=-1).astype(np.float64))


def cohens_kappa(confusion: ArrayLike) -> Floats:
    """Cohen's kappa of two annotators; NaN where chance alone would always agree. Shapes as in ``accuracy``."""
    table = np.asarray(confusion, dtype=np.float64)
    total = table.sum(axis=(-2, -1))
    expected = ratios((table.sum(axis=-1) * table.sum(axis=-2)).sum(axis=-1), total**2)
    return chance_corrected(accuracy(table), expected)


def balanced_accuracy_present(confusion: ArrayLike) -> float | None:
    """Balanced accuracy of consistent against hallucinated, where truth and verdict agree that there is a fact.

    Chance is a half.

    Args:
        confusion: ``[classes, classes]`` counts in the order of ``CLASS_NAMES``, rows are true classes.

    Returns:
        None where there is no such verdict.
    """
    facts = np.asarray(confusion)[ABSENT + 1 :, ABSENT + 1 :]
    return float(balanced_accuracy(facts)) if facts.sum() else None


def agreement(truth: ArrayLike, predicted: ArrayLike, class_names: Sequence[str] = CLASS_NAMES) -> Agreement:
    """Compare predicted labels with true ones.

    Args:
        truth: ``[items]`` class codes.
        predicted: ``[items]`` class codes.
        class_names: name of each code.

    Raises:
        ValueError: different lengths, or a code without a name.
    """
    confusion = confusion_matrix(truth, predicted, len(class_names))
    hits = np.diagonal(confusion)
    return Agreement(
        class_names=tuple(class_names),
        confusion=confusion,
        accuracy=_known(accuracy(confusion)),
        balanced_accuracy=_known(balanced_accuracy(confusion)),
        precision=tuple(map(_known, ratios(hits, confusion.sum(axis=0)))),
        recall=tuple(map(_known, ratios(hits, confusion.sum(axis=1)))),
    )


def chance_corrected(observed: Floats, expected: Floats) -> Floats:
    """The share of the agreement beyond chance that was reached; NaN where chance alone would always agree."""
    return ratios(observed - expected, 1 - expected)


def _known(figure: ArrayLike) -> float | None:
    value = float(np.asarray(figure))
    return None if np.isnan(value) else value
