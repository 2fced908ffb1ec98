"""Weights of classes in the loss, and what must be taken back for probabilities to mean what they say.

Rare classes get large weights, so that a reward model learns them at all. Cross-entropy with weights w has its minimum
at a softmax that is proportional to w times the posterior: probabilities under another prior than the data's. The
logarithm of the weights is therefore subtracted from the logits wherever probabilities are used. Then
P(consistent) - P(hallucinated) is the expectation of the paper's +1 and -1, at any balance of the classes.
"""

from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fgaif_ray.records import CLASS_NAMES

CLASS_WEIGHT_CAP: Final = 5.0

ClassWeights = Literal["balanced", "none"]


def loss_weights(labels: ArrayLike, kind: ClassWeights) -> NDArray[np.float64]:
    """Return each class's weight in the loss, ``[3]``.

    Args:
        labels: ``[segments]`` class codes.
        kind: ``balanced`` is ``labels / (3 * labels of the class)``, at most ``CLASS_WEIGHT_CAP``, which keeps a
            handful of segments of a rare class from dominating the gradient; a class that does not occur has the cap,
            and is never used. ``none`` is 1 for all (FGAIF section 3.3: plain cross-entropy).
    """
    if kind == "none":
        return np.ones(len(CLASS_NAMES))
    counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=len(CLASS_NAMES))
    weights: NDArray[np.float64] = counts.sum() / (len(CLASS_NAMES) * np.maximum(counts, 1))
    return np.where(counts > 0, np.minimum(weights, CLASS_WEIGHT_CAP), CLASS_WEIGHT_CAP)
