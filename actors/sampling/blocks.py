"""Blocks: the tables of tasks that Ray Data hands to workers."""

from typing import Any

import pyarrow as pa


def blocks_of(rows: list[dict[str, Any]], size: int, schema: pa.Schema) -> list[pa.Table]:
    """Rows as tables of at most ``size`` rows."""
    return [pa.Table.from_pylist(rows[start : start + size], schema=schema) for start in range(0, len(rows), size)]
