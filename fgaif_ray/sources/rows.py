"""Rows as a source of a run: cut into sets, with the images inside them stored under the run's ``images/``."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Final

from fgaif_ray import storage
from fgaif_ray.config import ColumnNames, Config
from fgaif_ray.errors import UserError
from fgaif_ray.progress import Progress
from fgaif_ray.records import MORE_IMAGES, ImageRow, image_fields, read_images
from fgaif_ray.sources.dataset import open_dataset
from fgaif_ray.sources.row import PROVIDED_SCHEMA, ProvidedResponse, Row, RowSource, parse_row
from fgaif_ray.sources.sets import AskedRow, ImageSets, cut_rows, may_replace_images
from fgaif_ray.sources.tables import open_files
from fgaif_ray.storage import stages

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
    if not _holds_images(source):
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
    if _holds_images(source):
        source = _stored(stages.images_of_rows(config, source.key))
    sampled = set(sets.sample)
    for row in source.read():
        if row.response is None:
            continue
        images = _only_paths(row, source.name)  # stored by now
        if images in sampled:
            assert row.prompt is not None  # parse_row wants one
            yield ProvidedResponse(**image_fields(images), prompt=row.prompt, text=row.response)


def _open(config: Config) -> RowSource:
    data = config.data
    if data.source == "dataset":
        return open_dataset(data)
    assert data.path is not None  # the configuration checks it
    return open_files(data.path, data.columns, data.images_outside_path)


def _holds_images(source: RowSource) -> bool:
    """Whether images have to be stored: files stand in the rows as the columns say, or a data URL in the first row."""
    first = islice(source.read(), 1)
    return source.embedded or any(isinstance(image, bytes) for row in first for image in row.images)


def _paths(source: RowSource) -> Iterator[AskedRow]:
    """The rows of a source without images in them.

    Raises:
        UserError: there is one in a data URL.
    """
    for row in source.read():
        yield _only_paths(row, source.name), row.prompt, row.response


def _only_paths(row: Row, name: str) -> tuple[str, ...]:
    paths = tuple(image for image in row.images if isinstance(image, str))
    if len(paths) < len(row.images):
        raise UserError(
            f"{name} has paths of images and, further down, data URLs: give all as paths or all as data URLs."
        )
    return paths


def _file_name(image: bytes) -> str:
    """Name an image by its content, so that an image of many rows is one file."""
    suffix = next((suffix for start, suffix in _SUFFIXES.items() if image.startswith(start)), "")
    return hashlib.sha256(image).hexdigest() + suffix


def _stored_name(image: str | bytes) -> str:
    """Return what the stored rows hold: a name inside the stage, or a path that means the same from every folder."""
    if isinstance(image, bytes):
        return _file_name(image)
    return storage.absolute(image)


def _named(source: RowSource, stage: storage.Stage) -> Iterator[AskedRow]:
    """Yield the rows with the paths that their images have once the stage is published."""
    for row in source.read():
        paths = tuple(storage.resolve_path(_stored_name(image), stage.folder) for image in row.images)
        yield paths, row.prompt, row.response


def _store(source: RowSource, stage: storage.Stage, sets: ImageSets, overwrite: bool) -> None:
    """Publish the images of the sets, and all rows with names in place of images."""
    wanted = {image for part in (sets.sample, sets.align, sets.evaluate) for images in part for image in images}
    written: set[str] = set()
    part: list[Row] = []
    parts = rows = 0
    stage.begin(overwrite=overwrite)
    with Progress("images", None, "images") as progress:
        for row in source.read():
            names = tuple(map(_stored_name, row.images))
            for name, image in zip(names, row.images, strict=True):
                new = name not in written and storage.join(stage.folder, name) in wanted
                if new and isinstance(image, bytes):
                    storage.write_image(storage.join(stage.partial, name), image)
                    written.add(name)
                    progress.advance()
            part.append(Row(names, row.prompt, row.response))
            rows += 1
            if len(part) == STORED_ROWS:
                _write_stored(stage, part, parts)
                part, parts = [], parts + 1
    _write_stored(stage, part, parts)
    stage.publish({"images": len(written), "rows": rows})


def _write_stored(stage: storage.Stage, part: Sequence[Row], number: int) -> None:
    rows = [
        {
            "image": row.images[0],
            MORE_IMAGES.name: list(row.images[1:]) or None,
            "prompt": row.prompt,
            "response": row.response,
        }
        for row in part
    ]
    storage.write_part(stage.partial, rows, PROVIDED_SCHEMA, f"{number:06d}")


def _stored(stage: storage.Stage) -> RowSource:
    """Read the rows of a published stage."""
    resolve = partial(storage.resolve_path, folder=stage.folder)  # what they name was looked at when it was stored

    def read() -> Iterator[Row]:
        for uri in storage.list_parts(stage.folder):
            for number, values in enumerate(storage.read_part(uri), start=1):
                columns = ColumnNames(prompt=None if values["prompt"] is None else "prompt")
                values["image"] = list(ImageRow(**read_images(values)).images)
                yield parse_row(values, columns, resolve, f"{uri}, row {number}")

    return RowSource(stage.folder, stage.fingerprint, False, read)


def _require_images(sets: ImageSets, name: str) -> None:
    """Detect early that paths mean another folder. Single missing images are rejected when they are read."""
    tried = [images[0] for images in sets.sample[:TRIED_IMAGES]]
    if not any(map(storage.exists, tried)):
        first = "first " if len(tried) < len(sets.sample) else ""
        raise UserError(
            f"None of the {first}{len(tried)} images to be sampled that {name} names exists, {tried[0]} for one: paths "
            "are relative to the folder of the file."
        )
