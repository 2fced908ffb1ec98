"""Features of images, as the decoder of any family takes them.

``get_image_features`` of transformers' models answers in a few forms: features of each image, or of equal blocks of
tokens, with or without further features for the first layers of the decoder (deepstack). They are kept apart by prompt
here, without padding, and put together again for any batch of prompts as ``mm_encoder_outputs``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

POOLED = "pooler_output"
DEEPSTACK = "deepstack_features"


@dataclass(frozen=True, slots=True)
class FeatureLayout:
    """The form in which a family's ``get_image_features`` answers, and its decoder wants to be answered."""

    output: type[Any]
    """transformers' class of the answer."""
    listed: bool
    """Whether features come as one tensor for each image; else in one tensor for all."""
    block: int | None
    """Tokens of a block, where the one tensor is ``[blocks, tokens, hidden]``."""
    deepstack_listed: bool = False
    """Whether those of a deepstack layer come as one tensor for each image."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageFeatures:
    """The features of all images of one prompt.

    Example: an image of 64 tokens in a Qwen3-VL with deepstack features for three layers: ``planes`` ``[4, 64, 2048]``.
    """

    planes: Tensor
    """``[1 + deepstack_layers, image_tokens, hidden]``, without gradients."""
    layout: FeatureLayout

    def to(self, device: torch.device) -> "ImageFeatures":
        """Return the same features on another device."""
        return replace(self, planes=self.planes.to(device))

    def copy_to_host(self) -> "ImageFeatures":
        """Return a copy in host memory that keeps no larger tensor alive."""
        return replace(self, planes=self.planes.cpu().clone())


def count_features(output: Any) -> int:
    """The features in a model's answer, one for each image token."""
    pooled = getattr(output, POOLED)
    return sum(part.numel() // part.shape[-1] for part in ([pooled] if isinstance(pooled, Tensor) else pooled))


def split_features(output: Any, tokens: Sequence[int]) -> list[ImageFeatures]:
    """Take a model's answer apart by prompt.

    Args:
        output: of ``get_image_features``, for the images of several prompts, one after the other.
        tokens: image tokens of each prompt.

    Raises:
        ValueError: there are more or fewer features than image tokens.
    """
    pooled = getattr(output, POOLED)
    deepstack = list(getattr(output, DEEPSTACK, None) or ())
    listed = not isinstance(pooled, Tensor)
    layout = FeatureLayout(
        output=type(output),
        listed=listed,
        block=int(pooled.shape[1]) if not listed and pooled.dim() == 3 else None,
        deepstack_listed=bool(deepstack) and not isinstance(deepstack[0], Tensor),
    )
    planes = torch.stack([_flat(one) for one in (pooled, *deepstack)])  # [planes, image_tokens_of_all, hidden]
    if planes.shape[1] != sum(tokens):
        raise ValueError(f"{sum(tokens)} image tokens cannot take {planes.shape[1]} image features")
    return [ImageFeatures(part, layout) for part in torch.split(planes, list(tokens), dim=1)]


def join_features(features: Sequence[ImageFeatures]) -> dict[str, Any]:
    """Put the features of a batch's rows together as the argument ``mm_encoder_outputs``."""
    layout = features[0].layout
    planes = torch.cat([one.planes for one in features], dim=1)  # [planes, image_tokens_of_all, hidden]
    pooled: Any = planes[0]
    if layout.block is not None:
        pooled = pooled.view(-1, layout.block, pooled.shape[-1])
    fields = {POOLED: (pooled,) if layout.listed else pooled}
    if len(planes) > 1:
        fields[DEEPSTACK] = [(plane,) if layout.deepstack_listed else plane for plane in planes[1:]]
    return {"image": layout.output(**fields)}


def _flat(features: Tensor | Sequence[Tensor]) -> Tensor:
    """As ``[image_tokens, hidden]``."""
    parts = [features] if isinstance(features, Tensor) else list(features)
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
