"""What is tried before reward models are trained or served: one pass of their backbone over its own probes.

A tokenizer that cuts segments in another way, image features that are not as many as image tokens (trl issue 3847) or a
model that does not see its images would show in bad rewards alone, or in a traceback hours later.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from fgaif_ray.errors import UserError
from fgaif_ray.pixel_budget import UNLIMITED, PixelBudget
from fgaif_ray.rewards.encoding import EncodedItem, ScoringItem, encode_item
from fgaif_ray.vlm.backbone import Backbone
from fgaif_ray.vlm.probes import PROBE_PROMPT, SelfCheckError, probe_image

SEGMENTS: Final = ("There is a red ball, ", "next to a dog.")
SIDES: Final = ((224, 224), (160, 96))
"""Width and height of the probes: the first image of a prompt, and the others."""
MOST_IMAGES: Final = 2
"""Of a probe: a prompt of several images is like any other."""


def require_backbone(backbone: Backbone, images: int = 1, budget: PixelBudget = UNLIMITED) -> None:
    """Look whether a model can be the backbone of reward models; see ``check_backbone``.

    Raises:
        UserError: it cannot.
    """
    try:
        check_backbone(backbone, images, budget)
    except SelfCheckError as error:
        raise UserError(
            f"{backbone.path} cannot be the backbone of the reward models ({error}): choose another one for "
            f"rewards.backbone, or see what `fgaif check-model {backbone.path}` says."
        ) from error


@torch.no_grad()
def check_backbone(backbone: Backbone, images: int = 1, budget: PixelBudget = UNLIMITED) -> float:
    """Run a model once over responses that differ in their images alone.

    Args:
        backbone: on its device, with or without adapters.
        images: the most images of a prompt; where it may have several, one of the prompts has two.
        budget: of pixels of an image.

    Returns:
        How far another image moves a state, at most.

    Raises:
        SelfCheckError: ids, tokens of images or features do not fit, or the model does not see its images.
    """
    items = probe_items(images, budget)
    try:
        encoded = [encode_item(backbone, item) for item in items]
    except Exception as error:  # of the tokenizer's and the processor's: of any kind
        raise SelfCheckError(f"it does not read a response to an image: {_first_line(error)}") from error
    for item, one in zip(items, encoded, strict=True):
        _check_segments(backbone, item, one)
        if len(one) > backbone.max_length:
            shown = " and ".join(f"{image.width} x {image.height}" for image in item.images)
            raise SelfCheckError(
                f"a response to {shown} pixels takes {len(one)} tokens and it reads {backbone.max_length}: lower "
                "data.max_pixels"
            )
    try:
        states = _states(backbone, encoded)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        raise SelfCheckError(f"its pass over an image fails: {_first_line(error)}") from error
    if not all(bool(torch.isfinite(one).all()) for one in states):
        raise SelfCheckError("its states are not finite numbers: choose another dtype")
    moved = float((states[0] - states[1]).abs().max())
    if moved == 0.0:
        raise SelfCheckError("it does not see its images: another one changes nothing")
    return moved


def probe_items(images: int = 1, budget: PixelBudget = UNLIMITED) -> list[ScoringItem]:
    """Two responses about one image each, equal but for what it shows, and where prompts may have several, a third."""

    def shown(seed: int, count: int) -> ScoringItem:
        sizes = [budget.size_of(*SIDES[min(place, 1)]) for place in range(count)]
        return ScoringItem([probe_image(*size, seed) for size in sizes], PROBE_PROMPT, SEGMENTS)

    return [shown(0, 1), shown(1, 1), *([shown(2, MOST_IMAGES)] if images > 1 else [])]


def _check_segments(backbone: Backbone, item: ScoringItem, encoded: EncodedItem) -> None:
    first, read = 0, []
    for separator in encoded.separators:
        last = separator - len(encoded.prompt)
        read.append(backbone.front_end.decode(encoded.text_ids[first:last]).strip())
        first = last + 1
    if read != [segment.strip() for segment in item.segments]:
        raise SelfCheckError(f"its tokenizer does not cut text where segments end, it reads {read}")


def _states(backbone: Backbone, encoded: Sequence[EncodedItem]) -> list[Tensor]:
    """The states at the separators of each item, ``[segments, hidden]`` float32."""
    features = backbone.image_features([one.prompt for one in encoded])
    rows = backbone.rows([one.prompt for one in encoded], [one.text_ids for one in encoded])
    states = backbone.states(rows, features)  # [items, tokens, hidden]
    return [states[row, one.separators].float() for row, one in enumerate(encoded)]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
