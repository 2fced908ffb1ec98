"""Rows in files: JSON lines, Parquet, and the Arrow files of Hugging Face datasets."""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from fgaif_ray import storage
from fgaif_ray.config import ColumnNames
from fgaif_ray.errors import UserError
from fgaif_ray.records import fingerprint
from fgaif_ray.sources.image_paths import ImagePaths
from fgaif_ray.sources.row import ResolveImage, Row, RowSource, columns_in, parse_row

JSON_LINES: Final = (".jsonl", ".ndjson", ".json")
PARQUET: Final = (".parquet",)
BATCH_ROWS: Final = 64
"""Rows of a Parquet file in memory at a time; they may hold images."""
READ_BUFFER: Final = 1 << 20
"""Read buffer in bytes; without it a whole column of a row group would be read at once."""


def open_files(path: str, columns: ColumnNames, images_outside: bool = False) -> RowSource:
    """Open the rows of a JSON lines or Parquet file, or of all such files in a folder, in the order of their names.

    A ``.json`` file is read as JSON lines if it is named itself; in a folder it is ignored.

    Args:
        path: of the file or folder.
        columns: names of the columns.
        images_outside: whether rows may name images that are not below the folder (see ``ImagePaths``).

    Raises:
        UserError: there are no rows, or a Parquet file lacks the columns.
    """
    if storage.is_folder(path):
        kinds = (*JSON_LINES[:2], *PARQUET)
        root = path
        files = [uri for name, uri in storage.list_files(path).items() if name.lower().endswith(kinds)]
        if not files:
            raise UserError(f"The folder {path} holds no rows ({', '.join(kinds)}): set data.path to one that does.")
    elif not storage.exists(path):
        raise UserError(f"{path} does not exist: set data.path to a JSON lines or Parquet file, or a folder of them.")
    elif not path.lower().endswith((*JSON_LINES, *PARQUET)):
        raise UserError(f"{path} is neither JSON lines nor Parquet: give a file that ends in .jsonl or .parquet.")
    else:
        root, files = storage.parent(path), [path]
    images = ImagePaths((root,), images_outside)
    parquet = [uri for uri in files if uri.lower().endswith(PARQUET)]
    embedded = [embeds_images(_schema(uri), columns, uri) for uri in parquet]

    def read() -> Iterator[Row]:
        for uri in files:
            resolve = partial(images.resolve, folder=storage.parent(uri))
            yield from (_read_parquet if uri in parquet else _read_lines)(uri, columns, resolve)

    key = fingerprint([storage.file_key(uri) for uri in files])
    return RowSource(path, key, any(embedded), read)


def embeds_images(schema: pa.Schema, columns: ColumnNames, name: str) -> bool:
    """Tell whether the rows of a table hold images.

    Raises:
        UserError: a column is missing.
    """
    _require_columns(schema.names, columns, name)
    kind = schema.field(columns_in(schema.names, columns).image).type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind))


def read_tables(
    tables: Iterable[pa.Table | pa.RecordBatch], columns: ColumnNames, resolve: ResolveImage, name: str
) -> Iterator[Row]:
    """Yield the rows of consecutive tables; ``resolve`` makes paths of what they name as images."""
    number = 0
    for table in tables:
        found = columns_in(table.schema.names, columns)
        used = [column for column in wanted_columns(found) if column in table.schema.names]
        for values in table.select(used).to_pylist():
            number += 1
            yield parse_row(values, found, resolve, f"{name}, row {number}")


def wanted_columns(columns: ColumnNames) -> Sequence[str]:
    """Return the names of the columns that are read, each once."""
    names = (columns.image, columns.prompt, columns.response)
    return list(dict.fromkeys(name for name in names if name is not None))


def _schema(uri: str) -> pa.Schema:
    try:
        with storage.open_binary(uri) as file:
            return pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{uri} is not a readable Parquet file: replace it.") from error


def _read_parquet(uri: str, columns: ColumnNames, resolve: ResolveImage) -> Iterator[Row]:
    try:
        with (
            storage.open_binary(uri) as binary,
            pq.ParquetFile(binary, buffer_size=READ_BUFFER, pre_buffer=False) as file,
        ):
            present = file.schema_arrow.names
            used = [column for column in wanted_columns(columns_in(present, columns)) if column in present]
            batches = file.iter_batches(batch_size=BATCH_ROWS, columns=used, use_threads=False)
            yield from read_tables(batches, columns, resolve, uri)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{uri} is a broken Parquet file ({error}): replace it.") from error


def _read_lines(uri: str, columns: ColumnNames, resolve: ResolveImage) -> Iterator[Row]:
    seen: set[str] = set()
    try:
        with storage.open_binary(uri) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"{uri}, line {number}"
                    values = _object(line, where)
                    found = columns_in(values, columns)
                    if found.image not in values:
                        raise _no_column(where, "image", columns.image, values)
                    seen.update(values)
                    yield parse_row(values, found, resolve, where)
    except OSError as error:
        raise UserError(f"Cannot read {uri}: check that the file exists and may be read.") from error
    if not seen:
        raise UserError(f"{uri} holds no rows: set data.path to a file that does.")
    _require_columns(seen, columns, uri)


def _object(line: bytes, where: str) -> dict[str, Any]:
    """Parse the object of one line."""
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}): every line must be one object of its own.") from error
    if not isinstance(values, dict):
        raise UserError(f'{where} is not a JSON object: every line must be one, e.g. {{"image": ..., "prompt": ...}}.')
    return values


def _require_columns(present: Collection[str], columns: ColumnNames, where: str) -> None:
    """Raise UserError where a column is missing; only a response column of the default name may be."""
    found = columns_in(present, columns)
    wanted = {"image": found.image, "prompt": found.prompt}
    if columns.response != ColumnNames().response:
        wanted["response"] = columns.response
    for role, column in wanted.items():
        if column is not None and column not in present:
            raise _no_column(where, role, column, present)


def _no_column(where: str, role: str, column: str, present: Iterable[str]) -> UserError:
    advice = "" if role == "image" else ", or to null to do without"
    return UserError(
        f"{where} has no column {column!r} (it has {', '.join(sorted(present))}): set data.columns.{role} to the one "
        f"that holds the {role}s{advice}."
    )
