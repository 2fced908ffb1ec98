"""Agreement of predicted labels with true ones.

Accuracy alone misleads where one class dominates (always "yes" scores 80.7 % on FGAIF's human-labelled
facts), so balanced accuracy and per-class metrics come with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fgaif_ray.records import CLASS_NAMES


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
    recall = _ratios(hits, confusion.sum(axis=1))
    occurring = [value for value in recall if value is not None]
    return Agreement(
        class_names=tuple(class_names),
        confusion=confusion,
        accuracy=_ratios(hits.sum(keepdims=True), confusion.sum(keepdims=True).ravel())[0],
        balanced_accuracy=sum(occurring) / len(occurring) if occurring else None,
        precision=_ratios(hits, confusion.sum(axis=0)),
        recall=recall,
    )


def _ratios(parts: NDArray[np.int64], wholes: NDArray[np.int64]) -> tuple[float | None, ...]:
    return tuple(part / whole if whole else None for part, whole in zip(parts.tolist(), wholes.tolist(), strict=True))
