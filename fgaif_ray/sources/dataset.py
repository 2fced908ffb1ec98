"""Rows of a Hugging Face dataset: a folder that ``save_to_disk`` wrote, or a dataset by its name.

A folder is read through pyarrow. A name takes the package ``datasets``, which downloads and keeps it.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import pyarrow as pa

from fgaif_ray import storage
from fgaif_ray.config import DataConfig
from fgaif_ray.errors import BrokenFileError, UserError
from fgaif_ray.records import fingerprint
from fgaif_ray.sources.image_paths import ImagePaths
from fgaif_ray.sources.row import Row, RowSource
from fgaif_ray.sources.tables import BATCH_ROWS, embeds_images, read_tables

SPLITS_FILE: Final = "dataset_dict.json"
STATE_FILE: Final = "state.json"


def open_dataset(data: DataConfig) -> RowSource:
    """Open the rows of ``data.path``: a folder if there is one of that name, else a dataset of that name.

    Raises:
        UserError: there is no such dataset or split, a column is missing, or ``datasets`` is needed and not installed.
    """
    assert data.path is not None  # the configuration checks it
    return _open_folder(data, data.path) if storage.is_folder(data.path) else _open_name(data, data.path)


def _open_folder(data: DataConfig, path: str) -> RowSource:
    folder = path
    if storage.exists(storage.join(path, SPLITS_FILE)):
        splits = _read_json(storage.join(path, SPLITS_FILE)).get("splits", [])
        folder = storage.join(path, _choose(splits, data.split, path))
    elif not storage.exists(storage.join(path, STATE_FILE)):
        raise UserError(
            f"{path} is not a folder that save_to_disk of datasets wrote (it has no {STATE_FILE}); for a folder of "
            "Parquet files set data.source=rows."
        )
    files = [
        storage.join(folder, entry["filename"])
        for entry in _read_json(storage.join(folder, STATE_FILE)).get("_data_files", [])
    ]
    embedded = [embeds_images(_schema(uri), data.columns, uri) for uri in files]
    resolve = partial(ImagePaths((path,), data.images_outside_path).resolve, folder=folder)

    def read() -> Iterator[Row]:
        for uri in files:
            yield from read_tables(_batches(uri), data.columns, resolve, uri)

    return RowSource(path, fingerprint([storage.file_key(uri) for uri in files]), any(embedded), read)


def _choose(splits: list[str], wanted: str | None, path: str) -> str:
    """Choose the split to read."""
    if wanted is None and len(splits) == 1:
        return splits[0]
    if wanted not in splits:
        which = "several splits" if wanted is None else f"no split {wanted!r}"
        raise UserError(f"{path} has {which}: set data.split to one of {', '.join(splits)}.")
    return wanted


def _read_json(uri: str) -> dict[str, Any]:
    try:
        value = storage.read_json(uri)
    except BrokenFileError as error:
        raise UserError(f"Cannot read {uri}: save the dataset again with save_to_disk.") from error
    if not isinstance(value, dict):
        raise UserError(f"{uri} is not a file of save_to_disk: save the dataset again.")
    return value


def _schema(uri: str) -> pa.Schema:
    try:
        with storage.open_binary(uri) as file, pa.ipc.open_stream(file) as stream:
            return stream.schema
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{uri} is not a readable Arrow file: save the dataset again with save_to_disk.") from error


def _batches(uri: str) -> Iterator[pa.RecordBatch]:
    try:
        with storage.open_binary(uri) as file, pa.ipc.open_stream(file) as stream:
            for batch in stream:
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    yield batch.slice(start, BATCH_ROWS)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{uri} is a broken Arrow file ({error}): save the dataset again.") from error


def _open_name(data: DataConfig, name: str) -> RowSource:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError(
            f"{name} is not a folder, and reading a dataset by its name needs the package datasets: pip install "
            "'fgaif-ray[datasets]', or set data.path to a folder that save_to_disk wrote."
        ) from error
    try:
        dataset: Any = load_dataset(name, split=data.split)
    except (OSError, ValueError) as error:
        raise UserError(f"The dataset {name} cannot be loaded: {str(error).splitlines()[0]}") from error
    if isinstance(dataset, dict):
        dataset = dataset[_choose(list(dataset), None, name)]
    tables = dataset.with_format("arrow")
    embedded = embeds_images(dataset.data.schema, data.columns, name)
    resolve = partial(ImagePaths(_download_folders(), data.images_outside_path).resolve, folder=".")

    def read() -> Iterator[Row]:
        yield from read_tables(tables.iter(batch_size=BATCH_ROWS), data.columns, resolve, name)

    files = [storage.file_key(entry["filename"]) for entry in dataset.cache_files]
    return RowSource(name, fingerprint(files, len(dataset), data.split), embedded, read)


def _download_folders() -> tuple[str, ...]:
    """Where ``datasets`` keeps what it downloads; the images of a dataset by its name are there, or in its rows."""
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    return str(config.HF_DATASETS_CACHE), str(HF_HUB_CACHE)
