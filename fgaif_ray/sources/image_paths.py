"""What the rows of a source may name as an image: rows come from other people, and what they name is opened.

Files below the folder of ``data.path``, or with ``data.images_outside_path`` any file and any URI of object storage.
Never a server, a chain of file systems (``simplecache::...``) or a file system that reads others.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fgaif_ray import storage

OBJECT_STORAGE: Final = frozenset({"abfs", "abfss", "adl", "az", "gcs", "gs", "hdfs", "oci", "s3", "s3a"})
"""Schemes that rows may name; that of ``data.path`` as well, which a person has chosen."""
LONGEST_SHOWN: Final = 200
"""Characters of a path in a message."""
_FILE: Final = "file"
_CHAIN: Final = "::"


@dataclass(frozen=True, slots=True)
class ImagePaths:
    """The reach of the rows of a source.

    Example: ``ImagePaths(("s3://bucket/set",)).resolve("a.png", "s3://bucket/set/rows")`` is
    ``"s3://bucket/set/rows/a.png"``
    """

    roots: tuple[str, ...]
    """Folders or URIs below which images lie."""
    outside: bool = False
    """Whether rows may name images outside of them."""

    def resolve(self, value: str, folder: str) -> str:
        """Return the path or URI of an image.

        Links in a folder are followed: they are its owner's.

        Args:
            value: what a row names.
            folder: what a relative path is relative to.

        Raises:
            ValueError: the row names what it may not.
        """
        shown = value if len(value) <= LONGEST_SHOWN else f"{value[:LONGEST_SHOWN]}..."
        if _CHAIN in value or "\0" in value:
            raise ValueError(f"{shown!r} is not one path or URI; give a file")
        uri = storage.resolve_path(value, folder)
        scheme = _scheme(uri)
        if scheme not in OBJECT_STORAGE | {_FILE} | set(map(_scheme, self.roots)):
            raise ValueError(
                f"{shown!r} is not opened, as {scheme}:// is not object storage; download the images first"
            )
        if not self.outside and not any(_is_below(uri, root) for root in self.roots):
            raise ValueError(
                f"{shown!r} is not below {' or '.join(self.roots)}; move the image there, or set "
                "data.images_outside_path=true if you trust these rows"
            )
        # Opened is what was looked at: behind a link, `..` would lead elsewhere.
        climbs = scheme == _FILE and ".." in uri.split("/") and not self.outside
        return os.path.normpath(uri.removeprefix("file://")) if climbs else uri


def _scheme(uri: str) -> str:
    name, found, _ = uri.partition("://")
    return name.lower() if found else _FILE


def _is_below(uri: str, root: str) -> bool:
    if (_scheme(uri) == _FILE) != (_scheme(root) == _FILE):
        return False
    if _scheme(root) == _FILE:  # as fsspec takes it: what is not absolute is relative to the working directory
        path, top = (os.path.abspath(one.removeprefix("file://")) for one in (uri, root))
        return os.path.commonpath([path, top]) == top
    parts, top_parts = _parts(uri), _parts(root)
    return ".." not in parts and parts[: len(top_parts)] == top_parts


def _parts(uri: str) -> Sequence[str]:
    return [part for part in uri.split("/") if part not in ("", ".")]
