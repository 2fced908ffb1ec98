"""What a vision-language model of any family reads: prompts with their images, and batches of rows.

The checkpoint's own processor makes every tensor. Only token ids and token types are understood here; the rest travels
unread, by name, to the model's ``get_image_features`` and ``forward``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

PIXELS: Final = "pixel"
"""Names of tensors that hold pixels begin so; they go to ``get_image_features`` alone."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EncodedPrompt:
    """A prompt and its images, as a processor makes them for a model.

    Example: a Qwen2.5-VL prompt of 30 tokens with an image of 4 merged patches has 30 ``input_ids``, the token type
    ``mm_token_type_ids`` with four ones, ``image_inputs`` ``pixel_values`` ``[16, 1176]`` and ``image_grid_thw``
    ``[[1, 4, 4]]``, and ``image_tokens`` 4.
    """

    input_ids: tuple[int, ...]
    """``[prompt_tokens]``, images expanded."""
    token_types: Mapping[str, tuple[int, ...]]
    """By the processor's name, ``[prompt_tokens]``; 0 is text."""
    image_inputs: Mapping[str, Tensor]
    """By the processor's name, on the CPU; the first dimension counts images, or parts of them."""
    image_tokens: int
    """Tokens of ``input_ids`` that image features take the place of."""

    def __len__(self) -> int:
        return len(self.input_ids)

    def without_pixels(self) -> "EncodedPrompt":
        """Return what a pass over known features needs; the pixels are most of the memory."""
        kept = {name: tensor for name, tensor in self.image_inputs.items() if not name.startswith(PIXELS)}
        return replace(self, image_inputs=kept)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RowInputs:
    """A batch of rows for a decoder, padded on the right, where a causal model cannot see the padding."""

    input_ids: Tensor
    """``[rows, tokens]`` int64."""
    token_types: Mapping[str, Tensor]
    """By name, ``[rows, tokens]`` int64."""
    position_ids: Tensor | None
    """``[axes, rows, tokens]`` where the family gives images positions of their own (M-RoPE)."""
    lengths: Tensor
    """``[rows]`` int64 real tokens."""

    def select(self, indices: Tensor) -> "RowInputs":
        """Select rows, in the given order, without the padding that none of them needs.

        Args:
            indices: ``[rows]`` int64.
        """
        lengths = self.lengths[indices]
        width = int(lengths.max()) if len(indices) else 0
        return RowInputs(
            input_ids=self.input_ids[indices, :width],
            token_types={name: types[indices, :width] for name, types in self.token_types.items()},
            position_ids=None if self.position_ids is None else self.position_ids[:, indices, :width],
            lengths=lengths,
        )

    def to(self, device: torch.device) -> "RowInputs":
        """Return the same batch on another device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            token_types={name: types.to(device) for name, types in self.token_types.items()},
            position_ids=None if self.position_ids is None else self.position_ids.to(device),
            lengths=self.lengths.to(device),
        )


def pad_rows(prompts: Sequence[EncodedPrompt], continuations: Sequence[Sequence[int]], pad_token_id: int) -> RowInputs:
    """Put prompts and what follows them side by side, on the CPU and without positions.

    Args:
        prompts: at least one.
        continuations: ``[rows]`` token ids of text.
        pad_token_id: of a token that stands for no image.
    """
    lengths = torch.tensor([len(one) + len(ids) for one, ids in zip(prompts, continuations, strict=True)])  # [rows]
    shape = (len(prompts), int(lengths.max()))
    input_ids = torch.full(shape, pad_token_id, dtype=torch.int64)  # [rows, tokens]
    token_types = {name: torch.zeros(shape, dtype=torch.int64) for name in prompts[0].token_types}
    for row, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        input_ids[row, : lengths[row]] = torch.tensor([*prompt.input_ids, *continuation])
        for name, types in token_types.items():
            types[row, : len(prompt)] = torch.tensor(prompt.token_types[name])
    return RowInputs(input_ids=input_ids, token_types=token_types, position_ids=None, lengths=lengths)


def image_batches(prompts: Sequence[EncodedPrompt], most_images: int, most_values: int) -> list[list[int]]:
    """Cut prompts into batches whose images can go through a vision tower together: tensors of one shape.

    Args:
        prompts: with images.
        most_images: prompts of a batch.
        most_values: pixel values of a batch; a prompt with more is a batch of its own.

    Returns:
        Indices; every prompt once.
    """
    alike: dict[object, list[int]] = {}
    for index, prompt in enumerate(prompts):
        shapes = [(name, tensor.shape[1:]) for name, tensor in sorted(prompt.image_inputs.items())]
        alike.setdefault(tuple(shapes), []).append(index)
    batches = []
    for members in alike.values():
        batch: list[int] = []
        values = 0
        for index in members:
            own = sum(tensor.numel() for name, tensor in prompts[index].image_inputs.items() if name.startswith(PIXELS))
            if batch and (len(batch) == most_images or values + own > most_values):
                batches.append(batch)
                batch, values = [], 0
            batch.append(index)
            values += own
        batches.append(batch)
    return batches
