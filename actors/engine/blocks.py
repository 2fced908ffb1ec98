"""Blocks: the unit that Ray Data hands to a worker, and that the worker writes as a part of a stage.

A block travels as one row that holds its table. Ray Data (2.60) takes ``batch_size=None``, a whole block as it is, only
from workers that ask for no GPU; with a row per block, ``batch_size=1`` says the same on any node.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final, Protocol

import pyarrow as pa

COLUMN: Final = "block"
SCHEMA: Final = pa.schema([pa.field(COLUMN, pa.large_binary(), nullable=False)])
ONE_BLOCK: Final[dict[str, Any]] = {"batch_size": 1, "batch_format": "pyarrow"}
"""Keywords of ``Dataset.map_batches`` for workers that take a block at a time."""


class TableRow(Protocol):
    """A row that knows its plain values, as the dataclasses beside the schemas do."""

    def to_row(self) -> dict[str, Any]: ...


def table_of(rows: Iterable[TableRow], schema: pa.Schema) -> pa.Table:
    """Put rows into a table."""
    return pa.Table.from_pylist([row.to_row() for row in rows], schema=schema)


def blocks_of(rows: Iterable[TableRow], size: int, schema: pa.Schema) -> Iterator[pa.Table]:
    """Cut rows into tables of at most ``size`` rows; no more rows are taken than the tables so far need."""
    iterator = iter(rows)
    while block := list(islice(iterator, size)):
        yield table_of(block, schema)


def seal(block: pa.Table) -> pa.Table:
    """Wrap a block into the one row in which it travels."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, block.schema) as writer:
        writer.write_table(block)
    return pa.table({COLUMN: [sink.getvalue().to_pybytes()]}, schema=SCHEMA)


def unseal(sealed: pa.Table) -> pa.Table:
    """Unwrap the block in a row.

    Raises:
        ValueError: there is not exactly one row.
    """
    if len(sealed) != 1:
        raise ValueError(f"a worker takes one block at a time, not {len(sealed)}")
    with pa.ipc.open_stream(sealed.column(COLUMN)[0].as_buffer()) as reader:
        return reader.read_all()
