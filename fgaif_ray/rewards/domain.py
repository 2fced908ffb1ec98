"""How far an image is from those that reward models were trained on.

A reward model that has seen coloured shapes alone answers about a portrait as surely as about a shape. Its
probabilities do not tell; the features of the image do. The features that the frozen backbone gives the decoder are
averaged over the tokens of a prompt's images, and the distance of this mean from those of the training images is
measured in the directions in which these vary, each in units of its own deviation, and in all others together, in units
of theirs (Mahalanobis' distance with the covariance of probabilistic PCA, Tipping and Bishop 1999; Lee et al. 2018
found such distances to tell what a network has not been trained on). It needs only tens of images, and little memory at
any width.

The threshold leaves out one image in a hundred of training images that the distance was not fitted on (folds). How many
of the *held-out* images, which had no part in that, are beyond it is counted: the false alarms of the card.

What it cannot do: tell of a text that is unlike the training texts; see the one odd image among several of a prompt,
whose features are averaged together; or see what the backbone itself does not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

import torch
from safetensors.torch import load_file
from torch import Tensor

from fgaif_ray.rewards.files import DOMAIN_FILE, save_tensors
from fgaif_ray.serving.wire import DomainCard
from fgaif_ray.vlm.image_features import ImageFeatures

FEWEST_IMAGES: Final = 8
"""Training images; of fewer there is no distance."""
MOST_IMAGES: Final = 1024
"""Training images that the distance is fitted on; of more, so many are taken."""
FOLDS: Final = 5
RANK: Final = 64
"""Directions with a variance of their own, at most; and one for four images."""
IMAGES_OF_DIRECTION: Final = 4
INSIDE: Final = 0.99
"""Share of images like those of training that the threshold lets through."""
SMALLEST_DEVIATION: Final = 1e-3
"""Of a direction, as a share of the size of the features: images that are all alike are not infinitely far apart."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ImageDomain:
    """The training images of a reward model, as a distance from them."""

    mean: Tensor
    """``[hidden]`` float32, as all tensors here."""
    axes: Tensor
    """``[rank, hidden]`` orthonormal directions."""
    variances: Tensor
    """``[rank]`` of the training images in them."""
    rest: Tensor
    """``[]`` variance in any other direction."""
    threshold: float = 1.0
    images: int = 0
    """Training images."""
    held_out: int = 0
    """Images on which false alarms were counted."""
    false_alarms: int = 0

    def distances(self, pooled: Tensor) -> Tensor:
        """Return distances in units of the threshold, ``[prompts]`` float64 on the CPU; above 1 is out of domain.

        Args:
            pooled: ``[prompts, hidden]``, see ``pool_features``.
        """
        centred = pooled.double().cpu() - self.mean.double()
        inside = centred @ self.axes.double().T  # [prompts, rank]
        outside = (centred.square().sum(dim=1) - inside.square().sum(dim=1)).clamp(min=0.0)
        squared = (inside.square() / self.variances.double()).sum(dim=1) + outside / self.rest.double()
        return squared.sqrt() / self.threshold

    def equals(self, other: "ImageDomain") -> bool:
        """Whether both measure the same, so that one of them will do."""
        tensors = ((self.mean, other.mean), (self.axes, other.axes), (self.variances, other.variances))
        return self.card() == other.card() and all(torch.equal(one, two) for one, two in tensors)

    def card(self) -> DomainCard:
        """What metrics, model card and service say of it."""
        return DomainCard(
            threshold=self.threshold,
            images=self.images,
            held_out=self.held_out,
            false_alarms=self.false_alarms,
            false_alarm_rate=self.false_alarms / self.held_out if self.held_out else None,
        )

    def save(self, folder: Path) -> None:
        """Write ``domain.safetensors``."""
        tensors = {"mean": self.mean, "axes": self.axes, "variances": self.variances, "rest": self.rest}
        save_tensors(tensors, folder / DOMAIN_FILE, {"format": "pt", "card": self.card().model_dump_json()})

    @classmethod
    def load(cls, folder: Path, card: DomainCard) -> Self:
        """Read what ``save`` wrote.

        Args:
            folder: a local one.
            card: of the file's header, see ``rewards.files.read_domain_card``.
        """
        tensors = load_file(folder / DOMAIN_FILE)
        return cls(
            mean=tensors["mean"],
            axes=tensors["axes"],
            variances=tensors["variances"],
            rest=tensors["rest"],
            threshold=card.threshold,
            images=card.images,
            held_out=card.held_out,
            false_alarms=card.false_alarms,
        )


def pool_features(features: Sequence[ImageFeatures]) -> Tensor:
    """Average the features of each prompt's images over their tokens, ``[prompts, hidden]`` float32."""
    return torch.stack([one.planes[0].float().mean(dim=0) for one in features])


def fit_domain(train: Tensor, held_out: Tensor) -> ImageDomain | None:
    """Fit the distance and its threshold to training images, and count false alarms among held-out ones.

    Args:
        train: ``[images, hidden]`` of ``pool_features``.
        held_out: likewise; no part of the fit.

    Returns:
        None of fewer than ``FEWEST_IMAGES`` training images.
    """
    count = len(train)
    if count < FEWEST_IMAGES:
        return None
    chosen = train.double().cpu()
    if count > MOST_IMAGES:
        chosen = chosen[torch.linspace(0, count - 1, MOST_IMAGES).round().long()]
    fold = torch.arange(len(chosen)) % FOLDS
    unseen = torch.cat([_fit(chosen[fold != one]).distances(chosen[fold == one]) for one in range(FOLDS)])
    rank = min(math.ceil((len(unseen) + 1) * INSIDE), len(unseen))
    fitted = replace(_fit(chosen), threshold=max(float(unseen.sort().values[rank - 1]), 1.0), images=count)
    alarms = int((fitted.distances(held_out) > 1.0).sum())
    return replace(fitted, held_out=len(held_out), false_alarms=alarms)


def _fit(images: Tensor) -> ImageDomain:
    """Mean and covariance of images, ``[images, hidden]`` float64."""
    count, hidden = images.shape
    mean = images.mean(dim=0)
    centred = images - mean
    wide = hidden > count  # the smaller of the two products has the same eigenvalues
    values, vectors = torch.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    smallest = SMALLEST_DEVIATION**2 * float(images.square().mean()) + torch.finfo(torch.float32).tiny
    rank = min(RANK, count // IMAGES_OF_DIRECTION, hidden // 2)
    leading = values[-rank:].clamp(min=0.0)
    found = vectors[:, -rank:].T  # [rank, images or hidden]
    axes = found @ centred / leading.sqrt().clamp(min=1e-300)[:, None] if wide else found
    axes = torch.where((leading > 0)[:, None], axes, torch.zeros_like(axes))
    total = float(centred.square().sum())
    rest = (total - float(leading.sum())) / ((count - 1) * (hidden - rank))
    return ImageDomain(
        mean=mean.float(),
        axes=axes.float(),
        variances=(leading / (count - 1)).clamp(min=smallest).float(),
        rest=torch.tensor(max(rest, smallest), dtype=torch.float32),
    )


def largest_distance(distances: Sequence[float | None]) -> float | None:
    """The largest of the distances that are known, None where none is."""
    return max((one for one in distances if one is not None), default=None)


def is_outside(distance: float | None) -> bool | None:
    """Whether a distance is that of an image out of domain; None where it is not known."""
    return None if distance is None else distance > 1.0
