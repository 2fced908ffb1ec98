"""What the stages that go through rows export: how many are left."""

from collections.abc import Iterable, Iterator

from actors import metrics
from actors.engine.block_counts import BlockCounts


def count_down(stage: str, rows: int, blocks: Iterable[BlockCounts]) -> Iterator[BlockCounts]:
    """Pass on the counts of finished blocks, and export how many of so many rows are left."""
    left = rows
    metrics.STAGE_PENDING_ROWS.set(left, stage=stage)
    for counts in blocks:
        left -= counts.done + counts.rejected
        metrics.STAGE_PENDING_ROWS.set(left, stage=stage)
        yield counts
