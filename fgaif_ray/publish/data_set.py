"""The feedback of a run as a data set that ``datasets.load_dataset`` reads: Parquet files in two splits."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.images import load_image, read_image_file
from fgaif_ray.publish.local_names import LocalNames
from fgaif_ray.records import CLASS_NAMES, FEEDBACK_COLUMNS, MORE_IMAGES, Feedback, feedback_schema
from fgaif_ray.storage import stages
from fgaif_ray.storage.data_set import IMAGE_LIST, with_features

ImageMode = Literal["embed", "reference"]
IMAGE_MODES: Final[tuple[ImageMode, ...]] = ("embed", "reference")
TRAIN, VALIDATION = "train", "validation"
SPLITS: Final = (TRAIN, VALIDATION)
ROWS_OF_A_FILE: Final = 2000
ROWS_AT_A_TIME: Final = 256
"""Rows that are in memory with their images."""
_LEFT_OUT: Final = ("image", MORE_IMAGES.name, "token_ids")


@dataclass(slots=True)
class DataSetCounts:
    """What a data set holds, for its card."""

    rows: Counter[str] = field(default_factory=Counter)
    """By split."""
    labels: dict[str, Counter[str]] = field(default_factory=dict)
    """Segments by fact type, then by class."""
    models: set[str] = field(default_factory=set)
    """That gave the responses."""

    def add(self, split: str, row: Mapping[str, Any]) -> None:
        """Count a row of the data set."""
        self.rows[split] += 1
        self.models.add(row["model"])
        for segment in row["segments"]:
            for name, code in segment["labels"].items():
                self.labels.setdefault(name, Counter())["masked" if code is None else CLASS_NAMES[code]] += 1


def write_data_set(config: Config, folder: Path, mode: ImageMode, names: LocalNames) -> DataSetCounts:
    """Write ``data/<split>-NNNNN.parquet``.

    Args:
        config: ``run.dir`` with a finished ``feedback/``.
        folder: that is there.
        mode: ``embed`` puts the images' files into the rows, ``reference`` their names.
        names: what is written in place of local paths.

    Raises:
        UserError: an image to embed cannot be used.
    """
    held_out = _held_out_images(config)
    schema = _schema(config.run.type_names, mode)
    shown: Callable[[str], Any] = _embedded if mode == "embed" else _reference(config)
    counts = DataSetCounts()
    (folder / "data").mkdir()
    for split in SPLITS:
        chosen = (row for row in _read(config) if (row.response.image_sha256 in held_out) == (split == VALIDATION))
        rows = (_to_row(row, shown, names) for row in chosen)
        _write_split(_counted(rows, split, counts), folder / "data", split, schema)
    return counts


def _read(config: Config) -> Iterator[Feedback]:
    uri = storage.join(config.run.dir, stages.FEEDBACK)
    return map(Feedback.from_row, storage.read_rows(uri, FEEDBACK_COLUMNS))


def _held_out_images(config: Config) -> frozenset[str]:
    """Digests of the images that the training of reward models holds out; none where there is one image."""
    from fgaif_ray.rewards.data import from_feedback, split_by_image

    responses = from_feedback(_read(config), config.run.type_names)
    try:
        _, validation = split_by_image(responses, config.rewards.validation_fraction, config.run.seed)
    except UserError:
        return frozenset()
    return frozenset(one.image_sha256 for one in validation)


def _schema(types: Sequence[str], mode: ImageMode) -> pa.Schema:
    images = pa.field("images", IMAGE_LIST if mode == "embed" else pa.list_(pa.string()))
    kept = [one for one in feedback_schema(types) if one.name not in _LEFT_OUT]
    return with_features(pa.schema([images, *kept]), ("images",) if mode == "embed" else ())


def _to_row(row: Feedback, shown: Callable[[str], Any], names: LocalNames) -> dict[str, Any]:
    values = {name: value for name, value in row.to_row().items() if name not in _LEFT_OUT}
    hidden = {name: names.hide(values[name]) for name in ("model", "annotator")}
    return {"images": list(map(shown, row.response.images)), **values, **hidden}


def _counted(rows: Iterable[dict[str, Any]], split: str, counts: DataSetCounts) -> Iterator[dict[str, Any]]:
    for row in rows:
        counts.add(split, row)
        yield row


def _write_split(rows: Iterator[dict[str, Any]], folder: Path, split: str, schema: pa.Schema) -> None:
    """Write files of at most ``ROWS_OF_A_FILE`` rows; none for a split without rows."""
    number, first = 0, next(rows, None)
    while first is not None:
        with pq.ParquetWriter(folder / f"{split}-{number:05d}.parquet", schema, compression="zstd") as writer:
            some, written = [first], 0
            while some:
                writer.write_table(pa.Table.from_pylist(some, schema=schema))
                written += len(some)
                some = list(islice(rows, min(ROWS_AT_A_TIME, ROWS_OF_A_FILE - written)))
        number, first = number + 1, next(rows, None)


def _embedded(image: str) -> dict[str, Any]:
    load_image(image)  # what could not be opened there is said here
    return {"bytes": read_image_file(image), "path": os.path.basename(image)}


def _reference(config: Config) -> Callable[[str], str]:
    """Names of images: relative to the folder that holds them, or what is last in their path."""
    root = config.data.path

    def name(image: str) -> str:
        inside = root is not None and image.startswith(root.rstrip("/") + "/")
        return image[len(root.rstrip("/")) + 1 :] if inside and root is not None else os.path.basename(image)

    return name
