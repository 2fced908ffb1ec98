"""What the heads of reward models read of the backbone's states: those at separators, and sums over segments."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fgaif_ray.rewards.encoding import EncodedItem


@dataclass(frozen=True, slots=True)
class SegmentStates:
    """What is read of the segments of a batch, float32."""

    ends: Tensor
    """``[separators, hidden]`` at the separators."""
    sums: Tensor | None
    """``[separators, hidden]`` summed over the tokens of each segment and its separator; None unless asked for."""


def read_states(hidden: Tensor, separators: Tensor, tokens: Tensor | None) -> SegmentStates:
    """Read the states of a batch.

    Args:
        hidden: ``[batch, tokens, hidden]``.
        separators: ``[separators, 2]`` of ``separator_places``.
        tokens: ``[tokens, 3]`` of ``segment_tokens``, where sums are wanted.
    """
    rows, columns = separators.unbind(dim=1)  # [separators] each
    ends = hidden[rows, columns].float()
    if tokens is None:
        return SegmentStates(ends, None)
    rows, columns, segments = tokens.unbind(dim=1)  # [tokens] each
    return SegmentStates(ends, torch.zeros_like(ends).index_add_(0, segments, hidden[rows, columns].float()))


def separator_places(items: Sequence[EncodedItem], device: torch.device, *, last_only: bool) -> Tensor:
    """Return row and position of each separator of a batch, or of the last of each response, ``[separators, 2]``."""
    first = -1 if last_only else 0
    places = [(row, column) for row, item in enumerate(items) for column in item.separators[first:]]
    return torch.tensor(places, device=device)


def segment_tokens(items: Sequence[EncodedItem], device: torch.device) -> Tensor:
    """Return row, position and number of the segment of each token of the responses, ``[tokens, 3]``."""
    found, number = [], 0
    for row, item in enumerate(items):
        start = len(item.prompt)
        for separator in item.separators:
            found += [(row, column, number) for column in range(start, separator + 1)]
            start, number = separator + 1, number + 1
    return torch.tensor(found, device=device).reshape(-1, 3)
