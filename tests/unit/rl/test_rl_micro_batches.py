"""Micro-batches by a budget of tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgaif_ray.rl.micro_batches import split_by_tokens


def parts(lengths: list[int], budget: int) -> list[list[int]]:
    return [part.tolist() for part in split_by_tokens(torch.tensor(lengths, dtype=torch.int64), budget)]


def test_padding_counts() -> None:
    assert parts([3, 9, 4, 5], 10) == [[0, 2], [3], [1]]  # 5 and 9 would be 18 with padding


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), max_size=20), st.integers(1, 60))
def test_every_row_once_within_the_budget_and_none_split_needlessly(lengths: list[int], budget: int) -> None:
    found = parts(lengths, budget)
    assert sorted(row for part in found for row in part) == list(range(len(lengths)))
    for number, part in enumerate(found):
        longest = max(lengths[row] for row in part)
        assert len(part) * longest <= budget or len(part) == 1
        if number + 1 < len(found):
            following = lengths[found[number + 1][0]]
            assert following >= longest
            assert (len(part) + 1) * following > budget


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        parts([1], 0)
