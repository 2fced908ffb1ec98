"""COCO: a folder of images, and an annotation file that says which of them to take."""

import codecs
from collections.abc import Iterator
from itertools import takewhile
from typing import Any, BinaryIO

import ijson

from fgaif_ray import storage
from fgaif_ray.config import DataConfig
from fgaif_ray.errors import UserError
from fgaif_ray.progress import say


def find_coco_images(data: DataConfig) -> list[str]:
    """List the images in ``data.path`` that the file ``data.annotations`` names, in the order of their ids.

    Any COCO file with a list of images will do: ``instances_*.json``, ``captions_*.json``, ``image_info_*.json``.

    Raises:
        UserError: the folder or the file is missing, the file is not a COCO file, or none of its images exists.
    """
    assert data.path is not None and data.annotations is not None  # the configuration checks them
    if not storage.is_folder(data.path):
        raise UserError(f"The image folder {data.path} does not exist: set data.path to the folder of COCO's images.")
    names = _names_by_id(data.annotations)
    files = storage.list_files(data.path)
    found = [files[name] for name in names if name in files]
    if not found:
        raise UserError(
            f"None of the {len(names)} images of {data.annotations} exists in {data.path}, {names[0]} for one: set "
            "data.path to the folder of the same part of COCO."
        )
    if len(found) < len(names):
        say(f"{len(names) - len(found)} of the {len(names)} images of {data.annotations} are not in {data.path}.")
    return found


def _names_by_id(annotations: str) -> list[str]:
    """Read the file names of the images, each once, in the order of their ids."""
    other_kind = (
        f"{annotations} is not a COCO annotation file (a list of images, each with id and file_name): set "
        "data.annotations to an instances_*.json or captions_*.json"
    )
    try:
        with storage.open_binary(annotations) as file:
            images = [_identified(entry) for entry in _iterate_images(file)]
    except OSError as error:
        raise UserError(f"Cannot read {annotations}: set data.annotations to an existing COCO file.") from error
    except ijson.JSONError as error:
        raise UserError(f"{other_kind} (it is not valid JSON).") from error
    except ValueError as error:
        raise UserError(f"{other_kind} ({error}).") from error
    if not images:
        raise UserError(f"{annotations} names no images: set data.annotations to a COCO file that does.")
    return list(dict.fromkeys(name for _, name in sorted(images)))


def _iterate_images(file: BinaryIO) -> Iterator[Any]:
    """The items of the list ``images``, one by one: the file is never held as a whole, nothing behind it is read."""
    if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
        file.seek(0)
    events = ijson.parse(file)
    if ("images", "start_array", None) not in events:
        raise ValueError("there is no list 'images'")
    yield from ijson.items(takewhile(lambda event: event != ("images", "end_array", None), events), "images.item")


def _identified(entry: Any) -> tuple[int, str]:
    """Return id and file name of an image; raises ValueError where it lacks one."""
    number, name = (entry.get("id"), entry.get("file_name")) if isinstance(entry, dict) else (None, None)
    if not isinstance(number, int) or not isinstance(name, str):
        raise ValueError("an image has no id or no file_name")
    return number, name
