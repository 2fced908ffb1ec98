"""The images of a row: in tables the first has a column of its own, and the others are a list beside it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

MORE_IMAGES: Final = pa.field("more_images", pa.list_(pa.string()))
"""The column of the images after the first; null where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRow:
    """A row about one image or several, which are shown together.

    Example: ``ImageRow(image="photos/dog.jpg", more_images=("photos/cat.jpg",)).images``
    """

    image: str
    """Path or URI of the first."""
    more_images: tuple[str, ...] = ()
    """Of the others, in the order of their places in the prompt."""

    @property
    def images(self) -> tuple[str, ...]:
        """Path or URI of each, at least one."""
        return (self.image, *self.more_images)


def image_fields(images: Sequence[str]) -> dict[str, Any]:
    """The arguments of an ``ImageRow`` with these images, at least one."""
    return {"image": images[0], "more_images": tuple(images[1:])}


def read_images(row: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an ``ImageRow`` in plain values; tables of earlier versions have no column ``more_images``."""
    return {"image": row["image"], "more_images": tuple(row.get(MORE_IMAGES.name) or ())}


def write_images(row: ImageRow) -> dict[str, Any]:
    """The plain values of a row's images."""
    return {"image": row.image, MORE_IMAGES.name: list(row.more_images) or None}


def images_key(images: Sequence[str]) -> str | list[str]:
    """What stands for images in fingerprints and identities: the path of one, the list of several."""
    return images[0] if len(images) == 1 else list(images)


def images_digest(digests: Sequence[str]) -> str:
    """Return the sha256 that stands for images: that of one, of several sha256 over theirs in order.

    Args:
        digests: sha256 of the bytes of each file, in hex, at least one.
    """
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()
