"""Which rows go through a pass together: a number of rows, or as many as fit a budget of tokens."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from fgaif_ray.rl.policy import EncodedRows, PolicyModel

ESTIMATE_FACTOR: Final = 4
"""Rows or tokens of a pass without gradients, as a multiple of those of a micro-batch."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Rows that go through a model together."""

    rows: Tensor
    """``[rows]`` int64 indices."""
    counts: bool
    """False where the pass is made for other processes' sake: what it computes must have no effect."""


def passes(model: PolicyModel, rows: EncodedRows, places: Tensor, size: int, tokens: int | None = None) -> list[Pass]:
    """The passes of some rows, as ``micro_batches`` cuts them, and as many more of one short row as the model needs to
    keep step with other processes (``PolicyModel.passes_of_all``).

    Args:
        model: that they go through.
        rows: at least one.
        places: ``[some]`` int64 indices of the rows that are wanted; may be empty.
        size: rows of a pass.
        tokens: tokens of a pass, padding included, in place of ``size``.
    """
    own = [Pass(places[chunk], True) for chunk in micro_batches(rows.select(places), size, tokens)]
    missing = model.passes_of_all(len(own)) - len(own)
    return own + [Pass(rows.lengths.argmin()[None], False)] * missing


def micro_batches(rows: EncodedRows, size: int, tokens: int | None = None) -> Iterator[Tensor]:
    """Row indices of each pass, rows of similar length together: ``size`` rows, or as many as fit ``tokens``."""
    return rows.chunks(size) if tokens is None else split_by_tokens(rows.lengths, tokens)


def split_by_tokens(lengths: Tensor, budget: int) -> Iterator[Tensor]:
    """Cuts the rows, sorted by length, into parts of at most ``budget`` tokens, padding included.

    What counts is what a pass computes: rows times the longest of them. A row that is longer than the budget is a part
    of its own.

    Args:
        lengths: ``[rows]`` int64 tokens, at least 1 each.
        budget: at least 1.

    Yields:
        ``[part]`` int64 row indices; every row once.

    Raises:
        ValueError: the budget is less than 1.
    """
    if budget < 1:
        raise ValueError(f"a budget needs at least one token, not {budget}")
    order = torch.argsort(lengths, stable=True)
    ascending: list[int] = lengths[order].tolist()
    start = 0
    for end in range(1, len(ascending) + 1):
        # One more row would be the longest of the part.
        if end == len(ascending) or (end - start + 1) * ascending[end] > budget:
            yield order[start:end]
            start = end
