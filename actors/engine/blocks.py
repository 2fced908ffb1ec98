"""Blocks: the unit that Ray Data hands to a worker, and that the worker writes as a part of a stage.

A block travels as one row that holds its table. Ray Data (2.60) takes ``batch_size=None``, a whole block as it is, only
from workers that ask for no GPU; with a row per block, ``batch_size=1`` says the same on any node.
"""

from typing import Any, Final

import pyarrow as pa

COLUMN: Final = "block"
SCHEMA: Final = pa.schema([pa.field(COLUMN, pa.large_binary(), nullable=False)])
ONE_BLOCK: Final[dict[str, Any]] = {"batch_size": 1, "batch_format": "pyarrow"}
"""Keywords of ``Dataset.map_batches`` for workers that take a block at a time."""


def blocks_of(rows: list[dict[str, Any]], size: int, schema: pa.Schema) -> list[pa.Table]:
    """Cut rows into tables of at most ``size`` rows."""
    return [pa.Table.from_pylist(rows[start : start + size], schema=schema) for start in range(0, len(rows), size)]


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
