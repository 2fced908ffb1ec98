"""Blocks on their way to a worker, and what the worker tells of them."""

from collections.abc import Iterator

import pytest

from actors.engine.block_counts import COUNTS_SCHEMA, BlockCounts
from actors.engine.blocks import blocks_of, seal, unseal
from actors.sampling.rows import TASK_SCHEMA, SamplingTask

TASKS = [SamplingTask(image=f"{number}.png", prompt="What is there?") for number in range(5)]


def test_rows_arrive_in_order_in_blocks_of_the_size() -> None:
    blocks = [unseal(seal(block)) for block in blocks_of(TASKS, 2, TASK_SCHEMA)]
    assert [len(block) for block in blocks] == [2, 2, 1]
    assert [SamplingTask.from_row(row) for block in blocks for row in block.to_pylist()] == TASKS


def test_no_more_rows_are_taken_than_a_block_needs() -> None:
    taken: list[SamplingTask] = []

    def rows() -> Iterator[SamplingTask]:
        for task in TASKS:
            taken.append(task)
            yield task

    next(blocks_of(rows(), 2, TASK_SCHEMA))
    assert taken == TASKS[:2]


@pytest.mark.parametrize(
    "counts",
    [
        BlockCounts(done=5, rejected=1, unavailable=("server: down",)),
        BlockCounts(fatal="The budget is used up."),
    ],
)
def test_counts_arrive_as_they_were(counts: BlockCounts) -> None:
    [row] = counts.to_table().to_pylist()
    assert list(row) == COUNTS_SCHEMA.names
    assert BlockCounts.from_row(row) == counts
