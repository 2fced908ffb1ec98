"""Files and folders of a local path or any fsspec URI, read and written whole."""

import hashlib
import json
import os
import stat
import tempfile
import uuid
from pathlib import Path
from typing import Any, Final

import fsspec

from fgaif_ray.errors import BrokenFileError, UserError

MANIFEST: Final = "_manifest.json"
"""Of a stage folder; ``stage.py`` says what it holds."""


def filesystem_of(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a local path or URI, and the path on it.

    Raises:
        UserError: no such file system is known, or its package is not installed.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:  # fsspec says which package, e.g. "Install s3fs to access S3"
        raise UserError(f"{uri} cannot be opened: {error}.") from error
    except ValueError as error:
        raise UserError(f"{uri} cannot be opened ({error}): give a local path, or a URI such as s3://...") from error
    return filesystem, path


def is_local(uri: str) -> bool:
    """Tell whether a path or URI is on this machine."""
    return "://" not in uri or uri.startswith("file://")


def join(uri: str, *names: str) -> str:
    """Append path components to a local path or URI."""
    return "/".join([uri.rstrip("/"), *names])


def absolute(uri: str) -> str:
    """Return a path or URI that means the same to processes with other working folders."""
    return uri if "://" in uri else os.path.abspath(uri)


def parent(uri: str) -> str:
    """Return the folder of a file; ``.`` for a bare name."""
    return uri.rsplit("/", 1)[0] if "/" in uri else "."


def resolve_path(path: str, folder: str) -> str:
    """Resolve a path that may be relative to a folder, or a URI."""
    return path if "://" in path or path.startswith("/") else join(folder, path)


def is_folder(uri: str) -> bool:
    """Tell whether a folder exists."""
    filesystem, path = filesystem_of(uri)
    return bool(filesystem.isdir(path))


def list_files(folder: str) -> dict[str, str]:
    """List the files under a folder: their paths or URIs by their names relative to it, sorted by name."""
    if is_local(folder):
        root = Path(folder.removeprefix("file://"))
        found = ((str(path.relative_to(root)), str(path)) for path in root.rglob("*") if path.is_file())
        return dict(sorted(found))
    filesystem, path = filesystem_of(folder)
    start = len(path.rstrip("/")) + 1
    return {name: join(folder, name) for name in sorted(entry[start:] for entry in filesystem.find(path))}


def list_folders(folder: str) -> list[str]:
    """List the names of the folders in a folder, sorted; none if it does not exist."""
    filesystem, path = filesystem_of(folder)
    if not filesystem.isdir(path):
        return []
    entries = filesystem.ls(path, detail=True)
    return sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory")


def file_key(uri: str) -> str:
    """Return a digest of a file's metadata; it changes when the file is written."""
    filesystem, path = filesystem_of(uri)
    info = filesystem.info(path)
    known = (info["size"], info["mtime"]) if is_local(uri) else sorted(info.items())
    return hashlib.sha256(str(known).encode()).hexdigest()[:16]


def open_binary(uri: str) -> Any:
    """Open a file of a local path or URI for reading bytes; use it as a context manager."""
    filesystem, path = filesystem_of(uri)
    return filesystem.open(path, "rb")


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    filesystem, path = filesystem_of(uri)
    filesystem.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    if is_local(uri):
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    else:
        with filesystem.open(path, "wb") as file:
            file.write(data)


def remove_file(uri: str) -> None:
    """Remove one file of a local path or URI."""
    filesystem, path = filesystem_of(uri)
    filesystem.rm_file(path)


def remove_folder(uri: str) -> None:
    """Remove a folder of a local path or URI and all its content, if it exists."""
    filesystem, path = filesystem_of(uri)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


def write_image(uri: str, data: bytes) -> None:
    """Write one file of a folder that is published as a whole later: no flush to disk, no rename of its own."""
    filesystem, path = filesystem_of(uri)
    with filesystem.open(path, "wb") as file:
        file.write(data)


def read_bytes(uri: str) -> bytes:
    """Read a whole file of a local path or URI."""
    filesystem, path = filesystem_of(uri)
    data: bytes = filesystem.cat_file(path)
    return data


class IrregularFileError(OSError):
    """What was to be read is a folder, a device or a pipe."""


def read_start(uri: str, size: int) -> bytes:
    """Read a file of a local path or URI, ``size`` bytes of it at most.

    Raises:
        IrregularFileError: it is not a regular file.
    """
    filesystem, path = filesystem_of(uri)
    if not is_local(uri):
        data: bytes = filesystem.cat_file(path, 0, size)
        return data
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for somebody to write to it
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise IrregularFileError("it is not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(min(size, status.st_size))
    finally:
        os.close(descriptor)


def write_json(uri: str, value: Any) -> None:
    """Write JSON as ``write_bytes`` does."""
    write_bytes(uri, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(uri: str) -> Any:
    """Read a JSON file of a local path or URI.

    Raises:
        BrokenFileError: it is missing or not JSON.
    """
    try:
        return json.loads(read_bytes(uri))
    except (OSError, ValueError) as error:
        raise broken_file(uri, error) from error


def broken_file(uri: str, error: Exception) -> BrokenFileError:
    """Build the error of an unreadable file of a run: which it is, why, and what to remove to make it again."""
    reason = "it is missing" if isinstance(error, FileNotFoundError) else (str(error).strip() or type(error).__name__)
    return BrokenFileError(uri, reason.splitlines()[0].rstrip("."), repair_advice(uri))


def repair_advice(uri: str) -> str:
    """Say how to make a broken file of a run again: its stage is written whole, so the stage has to go."""
    folder = parent(uri)
    for stage in (folder, parent(folder)):
        if exists(join(stage, MANIFEST)):
            return f"remove {stage} and run the job that writes it again"
    return "remove it and run the same command again"


def exists(uri: str) -> bool:
    """Tell whether a file or folder exists."""
    filesystem, path = filesystem_of(uri)
    return bool(filesystem.exists(path))


def upload_folder(local: str, uri: str) -> None:
    """Copy a local folder to a path or URI, replacing what is there."""
    filesystem, path = filesystem_of(uri)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)
    filesystem.makedirs(path, exist_ok=True)
    filesystem.put(local.rstrip("/") + "/", path, recursive=True)


def local_copy(uri: str) -> str:
    """Return a local path with the content of a folder: the folder itself if it is local, else a download."""
    if is_local(uri):
        return uri.removeprefix("file://")
    filesystem, path = filesystem_of(uri)
    target = tempfile.mkdtemp(prefix="fgaif-")
    filesystem.get(path.rstrip("/") + "/", target, recursive=True)
    return target
