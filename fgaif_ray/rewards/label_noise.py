"""Labels that are wrong whatever the image shows: their share, found without a truth, and verdicts without it.

A reward model that is calibrated to labels of which one in five is wrong calls a statement that is surely true
consistent with 0.8. Its verdicts shrink, and where a false statement costs more than a true one earns, statements that
are worth making no longer pay. With wrong labels of the two classes at shares a and b,

    P(labelled consistent) = (1 - a) P(consistent) + b P(hallucinated),

which is solved for the true probabilities (Patrini et al. 2017, section 3). The shares are read where the model is
surest (there called anchor points, section 4): of held-out segments that it calls consistent above all others, those
that are labelled hallucinated are hardly wrong calls of the model, so they are wrong labels. Whether a segment is
labelled absent is taken as it is.
"""

from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fgaif_ray.records import ABSENT, CONSISTENT, HALLUCINATED

ANCHORS: Final = 0.1
"""Share of the segments with facts, at either end, where the shares of wrong labels are read."""
FEWEST_ANCHORS: Final = 20
"""Segments at an end; with fewer no label is taken for wrong."""
MOST_NOISE: Final = 0.4
"""Of a class's labels; with more it could not be told from the other one."""


@dataclass(frozen=True, slots=True)
class LabelNoise:
    """Shares of wrong labels."""

    of_consistent: float = 0.0
    """Of consistent segments, those that are labelled hallucinated."""
    of_hallucinated: float = 0.0
    """Of hallucinated segments, those that are labelled consistent."""

    def to_dict(self) -> dict[str, float]:
        """JSON-serialisable."""
        return asdict(self)

    def taken_out(self, probabilities: Tensor) -> Tensor:
        """What probabilities under the noisy labels say of the truth.

        Args:
            probabilities: ``[..., 3]`` by class.

        Returns:
            ``[..., 3]``; that of the absent class stays.
        """
        if not self.of_consistent and not self.of_hallucinated:
            return probabilities
        present = probabilities[..., CONSISTENT] + probabilities[..., HALLUCINATED]
        solved = probabilities[..., CONSISTENT] - self.of_hallucinated * present
        consistent = (solved / (1 - self.of_consistent - self.of_hallucinated)).clamp(min=0).minimum(present)
        found = probabilities.clone()
        found[..., CONSISTENT], found[..., HALLUCINATED] = consistent, present - consistent
        return found


NO_NOISE: Final = LabelNoise()


def estimate_label_noise(probabilities: NDArray[np.float32], labels: ArrayLike) -> LabelNoise:
    """Estimate the shares of wrong labels from held-out verdicts.

    The estimate is too high by the segments at either end of which the model is wrong, and of no use where it knows
    nothing.

    Args:
        probabilities: ``[verdicts, 3]`` of a model that was trained on such labels.
        labels: ``[verdicts]`` class codes.
    """
    codes = np.asarray(labels)
    probabilities, codes = probabilities[codes != ABSENT], codes[codes != ABSENT]
    size = round(ANCHORS * len(codes))
    if size < FEWEST_ANCHORS:
        return NO_NOISE
    pair = probabilities[:, [CONSISTENT, HALLUCINATED]]
    order = np.argsort(pair[:, 0] / pair.sum(axis=1), kind="stable")
    of_hallucinated, of_consistent = (
        min(float((codes[part] == wrong).mean()), MOST_NOISE)
        for part, wrong in ((order[:size], CONSISTENT), (order[-size:], HALLUCINATED))
    )
    return LabelNoise(of_consistent, of_hallucinated)
