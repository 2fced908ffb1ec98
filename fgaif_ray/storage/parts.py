"""The Parquet parts of a stage folder."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from fgaif_ray.storage.files import broken_file, filesystem_of, join, open_binary, write_bytes

ROWS_AT_A_TIME: Final = 1024
"""Rows of a part that ``read_rows`` decodes at once."""


def part_uri(folder: str, name: str) -> str:
    """Return the path of a stage folder's part."""
    return join(folder, f"part-{name}.parquet")


def write_part(folder: str, rows: list[dict[str, Any]], schema: pa.Schema, name: str | None = None) -> str:
    """Write rows as one Parquet part of a stage folder, whole or not at all; returns the part's URI."""
    table = pa.Table.from_pylist(rows, schema=schema)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    uri = part_uri(folder, name or uuid.uuid4().hex)
    write_bytes(uri, sink.getvalue().to_pybytes())
    return uri


def list_parts(folder: str) -> list[str]:
    """List the Parquet parts of a stage folder, sorted by name."""
    filesystem, path = filesystem_of(folder)
    if not filesystem.exists(path):
        return []
    names = [entry.rsplit("/", 1)[-1] for entry in filesystem.ls(path, detail=False)]
    return [join(folder, name) for name in sorted(names) if name.startswith("part-") and name.endswith(".parquet")]


@contextmanager
def open_part(uri: str) -> Iterator[pq.ParquetFile]:
    """Open one part for reading.

    Raises:
        BrokenFileError: it is missing, cut short or not Parquet, also where that shows only as the block reads rows.
    """
    try:
        with open_binary(uri) as file:
            yield pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise broken_file(uri, error) from error


def read_part(uri: str, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """Read the rows of one part.

    Raises:
        BrokenFileError: it cannot be read.
    """
    with open_part(uri) as part:
        rows: list[dict[str, Any]] = part.read(columns=columns).to_pylist()
    return rows


def read_rows(folder: str, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a stage folder, part by part; of a large part only some rows are in memory at a time.

    Raises:
        BrokenFileError: a part cannot be read.
    """
    for uri in list_parts(folder):
        with open_part(uri) as part:
            for batch in part.iter_batches(ROWS_AT_A_TIME, columns=columns):
                yield from batch.to_pylist()
