"""What the stages that go through rows export: how many are left."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

from actors import metrics

ENDS: Final = ("sampled", "labelled", "answered", "rejected")
"""What becomes of a row, as blocks count it."""


def count_down(stage: str, rows: int, blocks: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Pass on the counts of finished blocks, and export how many of so many rows are left."""
    left = rows
    metrics.STAGE_PENDING_ROWS.set(left, stage=stage)
    for counts in blocks:
        left -= sum(counts.get(end) or 0 for end in ENDS)
        metrics.STAGE_PENDING_ROWS.set(left, stage=stage)
        yield counts
