"""Stage folders: what a stage of a run writes, published whole or not at all.

A stage writes its parts below ``<run>/<stage>.partial`` and publishes them by a rename (on object stores, which have
none, by a manifest written last). A folder without a manifest of the wanted fingerprint does not exist for readers.
The fingerprint covers the configuration of the stage and the manifests it read: an unchanged stage is not run again,
an interrupted one goes on from its parts, a changed one starts anew.
"""

import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from fgaif_ray.errors import UserError

MANIFEST: Final = "_manifest.json"
ROWS_AT_A_TIME: Final = 1024
"""Rows of a part that ``read_rows`` decodes at once."""


def _filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:  # fsspec says which package, e.g. "Install s3fs to access S3"
        raise UserError(f"{uri} cannot be opened: {error}.") from error
    except ValueError as error:
        raise UserError(f"{uri} cannot be opened ({error}): give a local path, or a URI such as s3://...") from error
    return filesystem, path


def is_local(uri: str) -> bool:
    """Whether a path or URI names a folder of this machine."""
    return "://" not in uri or uri.startswith("file://")


def join(uri: str, *names: str) -> str:
    """Append path components to a local path or URI."""
    return "/".join([uri.rstrip("/"), *names])


def parent(uri: str) -> str:
    """The folder of a file; ``.`` for a bare name."""
    return uri.rsplit("/", 1)[0] if "/" in uri else "."


def is_folder(uri: str) -> bool:
    """Whether a folder exists."""
    filesystem, path = _filesystem(uri)
    return bool(filesystem.isdir(path))


def list_files(folder: str) -> dict[str, str]:
    """The files below a folder: their paths or URIs by their names relative to it, sorted by name."""
    if is_local(folder):
        root = Path(folder.removeprefix("file://"))
        found = ((str(path.relative_to(root)), str(path)) for path in root.rglob("*") if path.is_file())
        return dict(sorted(found))
    filesystem, path = _filesystem(folder)
    start = len(path.rstrip("/")) + 1
    return {name: join(folder, name) for name in sorted(entry[start:] for entry in filesystem.find(path))}


def list_folders(folder: str) -> list[str]:
    """The names of the folders in a folder, sorted; none where it does not exist."""
    filesystem, path = _filesystem(folder)
    if not filesystem.isdir(path):
        return []
    entries = filesystem.ls(path, detail=True)
    return sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory")


def file_key(uri: str) -> str:
    """A digest of what a file system knows about a file without reading it; it changes when the file is written."""
    filesystem, path = _filesystem(uri)
    info = filesystem.info(path)
    known = (info["size"], info["mtime"]) if is_local(uri) else sorted(info.items())
    return hashlib.sha256(str(known).encode()).hexdigest()[:16]


def open_binary(uri: str) -> Any:
    """A file of a local path or URI, open for reading bytes; use it as a context manager."""
    filesystem, path = _filesystem(uri)
    return filesystem.open(path, "rb")


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    filesystem, path = _filesystem(uri)
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
    filesystem, path = _filesystem(uri)
    filesystem.rm_file(path)


def remove_folder(uri: str) -> None:
    """Remove a folder of a local path or URI and all that is in it; nothing happens where there is none."""
    filesystem, path = _filesystem(uri)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


def write_image(uri: str, data: bytes) -> None:
    """Write one file of a folder that is published as a whole later: no flush to disk, no rename of its own."""
    filesystem, path = _filesystem(uri)
    with filesystem.open(path, "wb") as file:
        file.write(data)


def read_bytes(uri: str) -> bytes:
    """Read a whole file of a local path or URI."""
    filesystem, path = _filesystem(uri)
    data: bytes = filesystem.cat_file(path)
    return data


def write_json(uri: str, value: Any) -> None:
    """Write JSON as ``write_bytes`` does."""
    write_bytes(uri, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(uri: str) -> Any:
    """Read a JSON file of a local path or URI."""
    return json.loads(read_bytes(uri))


def exists(uri: str) -> bool:
    """Whether a file or folder exists."""
    filesystem, path = _filesystem(uri)
    return bool(filesystem.exists(path))


def upload_folder(local: str, uri: str) -> None:
    """Copy a local folder to a path or URI, replacing what is there."""
    filesystem, path = _filesystem(uri)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)
    filesystem.makedirs(path, exist_ok=True)
    filesystem.put(local.rstrip("/") + "/", path, recursive=True)


def local_copy(uri: str) -> str:
    """A local path with the content of a folder: the folder itself where it is local, else a download."""
    if is_local(uri):
        return uri.removeprefix("file://")
    filesystem, path = _filesystem(uri)
    target = tempfile.mkdtemp(prefix="fgaif-")
    filesystem.get(path.rstrip("/") + "/", target, recursive=True)
    return target


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage folder of a run.

    Example: ``Stage("runs/shapes", "responses", "0f3a...")`` publishes to ``runs/shapes/responses``.
    """

    run: str
    name: str
    fingerprint: str

    @property
    def folder(self) -> str:
        """Where readers find the published stage."""
        return join(self.run, self.name)

    @property
    def partial(self) -> str:
        """Where the stage writes until it is published."""
        return join(self.run, f"{self.name}.partial")

    def is_complete(self) -> bool:
        """Whether this very stage (same fingerprint) has been published."""
        manifest = read_manifest(self.run, self.name)
        return manifest is not None and manifest["fingerprint"] == self.fingerprint

    def is_begun(self) -> bool:
        """Whether the partial folder holds parts of this very stage."""
        marker = join(self.partial, "_fingerprint")
        return exists(marker) and read_bytes(marker).decode() == self.fingerprint

    def begin(self) -> None:
        """Make the partial folder ready: parts of an interrupted run of the same fingerprint stay, others go."""
        filesystem, path = _filesystem(self.partial)
        if filesystem.exists(path) and not self.is_begun():
            filesystem.rm(path, recursive=True)
        filesystem.makedirs(path, exist_ok=True)
        write_bytes(join(self.partial, "_fingerprint"), self.fingerprint.encode())

    def publish(self, details: dict[str, Any]) -> None:
        """Make the partial folder the stage, replacing an older one; ``details`` go into its manifest."""
        filesystem, partial = _filesystem(self.partial)
        _, folder = _filesystem(self.folder)
        manifest = {"stage": self.name, "fingerprint": self.fingerprint, **details}
        filesystem.rm(f"{partial}/_fingerprint")
        if is_local(self.folder):
            write_json(join(self.partial, MANIFEST), manifest)
            old = f"{folder}.{uuid.uuid4().hex}.old"
            if os.path.exists(folder):
                os.replace(folder, old)
            os.replace(partial, folder)
            if os.path.exists(old):
                filesystem.rm(old, recursive=True)
        else:
            if filesystem.exists(folder):
                if filesystem.exists(f"{folder}/{MANIFEST}"):
                    filesystem.rm(f"{folder}/{MANIFEST}")
                filesystem.rm(folder, recursive=True)
            filesystem.copy(partial.rstrip("/") + "/", folder, recursive=True)
            filesystem.rm(partial, recursive=True)
            write_json(join(self.folder, MANIFEST), manifest)


def copy_stage(source: str, target: str, name: str) -> None:
    """Publish a copy of a stage of one run, manifest included, in another run, replacing what that has.

    Raises:
        ValueError: the source run has not published the stage.
    """
    manifest = read_manifest(source, name)
    if manifest is None:
        raise ValueError(f"{join(source, name)} is not there")
    stage = Stage(target, name, manifest.pop("fingerprint"))
    remove_folder(stage.partial)
    stage.begin()
    for relative, uri in list_files(join(source, name)).items():
        if relative != MANIFEST:
            write_bytes(join(stage.partial, *relative.split("/")), read_bytes(uri))
    del manifest["stage"]
    stage.publish(manifest)


def read_manifest(run: str, name: str) -> dict[str, Any] | None:
    """The manifest of a published stage, or None."""
    uri = join(run, name, MANIFEST)
    if not exists(uri):
        return None
    manifest: dict[str, Any] = read_json(uri)
    return manifest


def require_stage(run: str, name: str, job: str) -> dict[str, Any]:
    """The manifest of a stage that another one needs.

    Raises:
        UserError: it has not been published; the message names the job that does.
    """
    manifest = read_manifest(run, name)
    if manifest is None:
        raise UserError(f"{join(run, name)} is not there: run `python -m jobs.{job}` with this configuration first.")
    return manifest


def part_uri(folder: str, name: str) -> str:
    """Where a stage folder has the part of this name."""
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
    """The Parquet parts of a stage folder, sorted by name."""
    filesystem, path = _filesystem(folder)
    if not filesystem.exists(path):
        return []
    names = [entry.rsplit("/", 1)[-1] for entry in filesystem.ls(path, detail=False)]
    return [join(folder, name) for name in sorted(names) if name.startswith("part-") and name.endswith(".parquet")]


def read_part(uri: str, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """The rows of one part."""
    with open_binary(uri) as file:
        rows: list[dict[str, Any]] = pq.read_table(file, columns=columns).to_pylist()
    return rows


def read_rows(folder: str, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a stage folder, part by part; of a large part only some rows are in memory at a time."""
    for uri in list_parts(folder):
        with open_binary(uri) as file:
            for batch in pq.ParquetFile(file).iter_batches(ROWS_AT_A_TIME, columns=columns):
                yield from batch.to_pylist()
