"""Pending rows of a stage, as places in Parquet parts, so that a driver can hold 100,000 of them.

Identities are compared by 128-bit digests, 16 bytes a row.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from fgaif_ray import storage

PLACES_SCHEMA: Final = pa.schema(
    [
        pa.field("block", pa.int32(), nullable=False),  # ascending
        pa.field("part", pa.string(), nullable=False),  # URI
        pa.field("row_group", pa.int32(), nullable=False),
        pa.field("rows", pa.list_(pa.int32()), nullable=False),  # positions in the row group
    ]
)
DIGEST: Final = np.dtype([("high", "<u8"), ("low", "<u8")])
IDENTITY: Final = "sample_id"
ROW_GROUPS_HELD: Final = 2
OPEN_BLOCKS: Final = 3
"""Open blocks of an extraction worker: calls of the next ones fill the gap that a block's last calls leave."""


@dataclass(frozen=True, slots=True)
class Pending:
    """The pending rows of a stage, in blocks of a given size."""

    places: pa.Table
    """Of ``PLACES_SCHEMA``; a block has a line for each row group that it takes rows from."""
    blocks: int
    rows: int
    """Number of pending rows."""
    total: int
    """All rows."""


def digests(identities: Iterable[str]) -> np.ndarray[Any, np.dtype[Any]]:
    """Return digests of identities, ``[identities]`` of ``DIGEST``."""
    joined = b"".join(hashlib.blake2b(name.encode(), digest_size=DIGEST.itemsize).digest() for name in identities)
    return np.frombuffer(joined, dtype=DIGEST)


def identities_of(folder: str) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the digests of the rows in a stage folder, ``[distinct rows]``, sorted."""
    return distinct(*(digests(column) for _, _, column in _identity_columns(folder)))


def distinct(*arrays: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    """Merge the digests of all arrays, each once, sorted."""
    return np.unique(np.concatenate([np.empty(0, DIGEST), *arrays]))


def find_pending(folder: str, done: np.ndarray[Any, np.dtype[Any]], block_size: int) -> Pending:
    """Find the rows of a stage folder whose identities are not done.

    Args:
        folder: a stage folder with a column ``sample_id``.
        done: digests from ``identities_of``.
        block_size: rows of a block; blocks go on over the end of a part.
    """
    places: list[dict[str, Any]] = []
    left, total = 0, 0
    for part, row_group, column in _identity_columns(folder):
        total += len(column)
        rows = np.flatnonzero(~np.isin(digests(column), done)).astype(np.int32)
        while len(rows):
            block, filled = divmod(left, block_size)
            taken, rows = rows[: block_size - filled], rows[block_size - filled :]
            places.append({"block": block, "part": part, "row_group": row_group, "rows": taken})
            left += len(taken)
    return Pending(pa.Table.from_pylist(places, schema=PLACES_SCHEMA), -(-left // block_size), left, total)


def places_of(places: pa.Table, block: int) -> pa.Table:
    """Return the lines of one block."""
    start, stop = np.searchsorted(places.column("block").to_numpy(), [block, block + 1])
    return places.slice(start, stop - start)


class PlaceReader:
    """Reader of the rows of places, as plain values; row groups that follow each other in places are read once."""

    def __init__(self, columns: list[str]) -> None:
        self._columns = columns
        self._row_groups: dict[tuple[str, int], pa.Table] = {}

    def read_all(self, places: pa.Table) -> Iterator[dict[str, Any]]:
        """Yield the rows one after the other; only some of them are in memory at a time."""
        for line in range(len(places)):
            yield from self.read(places.slice(line, 1))

    def read(self, places: pa.Table) -> list[dict[str, Any]]:
        """Read the rows, in the order of the places."""
        rows: list[dict[str, Any]] = []
        for place in places.to_pylist():
            table = self._row_group(place["part"], place["row_group"])
            rows += table.take(pa.array(place["rows"], pa.int32())).to_pylist()
        return rows

    def _row_group(self, part: str, row_group: int) -> pa.Table:
        key = part, row_group
        if key not in self._row_groups:
            while len(self._row_groups) >= ROW_GROUPS_HELD:
                del self._row_groups[next(iter(self._row_groups))]
            with storage.open_part(part) as parquet:
                self._row_groups[key] = parquet.read_row_group(row_group, columns=self._columns)
        return self._row_groups[key]


def first_text(pending: Pending, column: str, holds: Callable[[str], bool]) -> str | None:
    """Find the first pending row whose text in a column fulfils a condition, and return the text, or None."""
    texts = (row[column] for row in PlaceReader([column]).read_all(pending.places))
    return next((text for text in texts if holds(text)), None)


def _identity_columns(folder: str) -> Iterator[tuple[str, int, list[str]]]:
    """Yield part, row group and identities of every row group of a stage folder."""
    for part in storage.list_parts(folder):
        with storage.open_part(part) as parquet:
            for row_group in range(parquet.num_row_groups):
                column = parquet.read_row_group(row_group, columns=[IDENTITY]).column(IDENTITY)
                yield part, row_group, column.to_pylist()
