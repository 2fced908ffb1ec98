"""What a worker tells the driver about a block: counts, no rows."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from fgaif_ray.errors import UserError

COUNTS_SCHEMA: Final = pa.schema(
    [
        pa.field("done", pa.int64(), nullable=False),
        pa.field("rejected", pa.int64(), nullable=False),
        pa.field("unavailable", pa.list_(pa.string()), nullable=False),
        pa.field("fatal", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCounts:
    """What became of the rows of a block.

    Example: ``BlockCounts(done=5, rejected=1, unavailable=("server: the endpoint failed",))`` of a block of seven rows
    """

    done: int = 0
    """Rows that were sampled, labelled or answered, or provided responses that were kept."""
    rejected: int = 0
    unavailable: tuple[str, ...] = ()
    """Of each row that stays pending: why the endpoint failed on it."""
    fatal: str | None = None
    """Why the job has to stop; the block is not done then."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "BlockCounts":
        """Build it from plain values."""
        return cls(
            done=row["done"], rejected=row["rejected"], unavailable=tuple(row["unavailable"]), fatal=row["fatal"]
        )

    def to_row(self) -> dict[str, Any]:
        """Return the plain values of ``COUNTS_SCHEMA``."""
        return {
            "done": self.done,
            "rejected": self.rejected,
            "unavailable": list(self.unavailable),
            "fatal": self.fatal,
        }

    def to_table(self) -> pa.Table:
        """Return the table of one row in which they travel."""
        return pa.Table.from_pylist([self.to_row()], schema=COUNTS_SCHEMA)


def until_fatal(blocks: Iterable[BlockCounts]) -> Iterator[BlockCounts]:
    """Pass on the counts of finished blocks.

    A worker sends why the job has to stop as counts: raised there, it would arrive without its type.

    Raises:
        UserError: at the first block that says so.
    """
    for counts in blocks:
        if counts.fatal is not None:
            raise UserError(counts.fatal)
        yield counts
