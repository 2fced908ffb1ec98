"""Rows as a source of a run: cut into sets, with the images inside them stored under the run's ``images/``."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Final

import pyarrow as pa

from fgaif_ray import storage
from fgaif_ray.config import ColumnNames, Config
from fgaif_ray.errors import UserError
from fgaif_ray.progress import Progress
from fgaif_ray.sources.dataset import open_dataset
from fgaif_ray.sources.row import ProvidedResponse, Row, RowSource, parse_row
from fgaif_ray.sources.sets import ImageSets, cut_rows, may_replace_images
from fgaif_ray.sources.tables import open_files
from fgaif_ray.storage import stages

STORED_SCHEMA: Final = pa.schema([(name, pa.string()) for name in ("image", "prompt", "response")])
STORED_ROWS: Final = 4096
"""Rows in one part of the stored rows."""
TRIED_IMAGES: Final = 1000
"""Images that are tried before a source is said to have none."""
_SUFFIXES: Final = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tiff",
    b"MM\0*": ".tiff",
    b"RIFF": ".webp",
}


def prepare_rows(config: Config) -> ImageSets:
    """Cut the rows of ``data`` into sets; images inside the rows are stored on the first call.

    Raises:
        UserError: the rows cannot be used, name too few images, or none of their images exists.
    """
    source = _open(config)
    if not source.embedded:
        sets = cut_rows(_paths(source), config.data, source.name)
        _require_images(sets, source.name)
        return sets
    stage = stages.images_of_rows(config, source.key)
    if stage.is_complete():
        return cut_rows(_paths(_stored(stage)), config.data, source.name)
    sets = cut_rows(_named(source, stage), config.data, source.name)
    _store(source, stage, sets, may_replace_images(config))
    return sets


def provided_responses(config: Config, sets: ImageSets) -> Iterator[ProvidedResponse]:
    """Yield the response of every row of the sample set that has one, in order."""
    if not sets.provided:
        return
    source = _open(config)
    if source.embedded:
        source = _stored(stages.images_of_rows(config, source.key))
    sampled = set(sets.sample)
    for row in source.read():
        if row.response is not None and row.image in sampled:
            assert isinstance(row.image, str) and row.prompt is not None  # stored by now, and parse_row wants a prompt
            yield ProvidedResponse(image=row.image, prompt=row.prompt, text=row.response)


def _open(config: Config) -> RowSource:
    data = config.data
    if data.source == "dataset":
        return open_dataset(data)
    assert data.path is not None  # the configuration checks it
    return open_files(data.path, data.columns)


def _paths(source: RowSource) -> Iterator[tuple[str, str | None, str | None]]:
    """The rows of a source without images in them."""
    for row in source.read():
        assert isinstance(row.image, str)
        yield row.image, row.prompt, row.response


def _file_name(image: bytes) -> str:
    """Name an image by its content, so that an image of many rows is one file."""
    suffix = next((suffix for start, suffix in _SUFFIXES.items() if image.startswith(start)), "")
    return hashlib.sha256(image).hexdigest() + suffix


def _stored_name(image: str | bytes) -> str:
    """Return what the stored rows hold: a name inside the stage, or a path that means the same from every folder."""
    if isinstance(image, bytes):
        return _file_name(image)
    return image if "://" in image else os.path.abspath(image)


def _named(source: RowSource, stage: storage.Stage) -> Iterator[tuple[str, str | None, str | None]]:
    """Yield the rows with the paths that their images have once the stage is published."""
    for row in source.read():
        yield storage.resolve_path(_stored_name(row.image), stage.folder), row.prompt, row.response


def _store(source: RowSource, stage: storage.Stage, sets: ImageSets, overwrite: bool) -> None:
    """Publish the images of the sets, and all rows with names in place of images."""
    wanted = {image for part in (sets.sample, sets.align, sets.evaluate) for image in part}
    written: set[str] = set()
    part: list[Row] = []
    parts = rows = 0
    stage.begin(overwrite=overwrite)
    with Progress("images", None, "images") as progress:
        for row in source.read():
            name = _stored_name(row.image)
            new = name not in written and storage.join(stage.folder, name) in wanted
            if new and isinstance(row.image, bytes):
                storage.write_image(storage.join(stage.partial, name), row.image)
                written.add(name)
                progress.advance()
            part.append(Row(name, row.prompt, row.response))
            rows += 1
            if len(part) == STORED_ROWS:
                _write_stored(stage, part, parts)
                part, parts = [], parts + 1
    _write_stored(stage, part, parts)
    stage.publish({"images": len(written), "rows": rows})


def _write_stored(stage: storage.Stage, part: Sequence[Row], number: int) -> None:
    rows = [{"image": row.image, "prompt": row.prompt, "response": row.response} for row in part]
    storage.write_part(stage.partial, rows, STORED_SCHEMA, f"{number:06d}")


def _stored(stage: storage.Stage) -> RowSource:
    """Read the rows of a published stage."""

    def read() -> Iterator[Row]:
        for uri in storage.list_parts(stage.folder):
            for number, values in enumerate(storage.read_part(uri), start=1):
                columns = ColumnNames(prompt=None if values["prompt"] is None else "prompt")
                yield parse_row(values, columns, stage.folder, f"{uri}, row {number}")

    return RowSource(stage.folder, stage.fingerprint, False, read)


def _require_images(sets: ImageSets, name: str) -> None:
    """Detect early that paths mean another folder. Single missing images are rejected when they are read."""
    tried = sets.sample[:TRIED_IMAGES]
    if not any(storage.exists(image) for image in tried):
        first = "first " if len(tried) < len(sets.sample) else ""
        raise UserError(
            f"None of the {first}{len(tried)} images to be sampled that {name} names exists, {tried[0]} for one: paths "
            "are relative to the folder of the file."
        )
