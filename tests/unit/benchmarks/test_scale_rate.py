"""What the benchmark of labelling on several nodes counts."""

import pytest

from benchmarks.scale import Block, rate_of


def test_rows_count_while_all_verifiers_work() -> None:
    blocks = [
        Block("a", 0, 10, 10),
        Block("a", 10, 20, 10),
        Block("b", 5, 15, 20),
        Block("b", 15, 35, 20),
    ]
    # From 5, when b begins, to 20, when a ends: 5 and 10 rows of a, 20 and 5 of b.
    assert rate_of(blocks) == pytest.approx(40 / 15)


def test_verifiers_that_take_turns_have_no_common_rate() -> None:
    with pytest.raises(ValueError, match="more rows"):
        rate_of([Block("a", 0, 1, 1), Block("b", 1, 2, 1)])
