"""Stage folders: what a stage of a run writes, published whole or not at all.

A stage writes its parts below ``<run>/<stage>.partial`` and publishes them by a rename (on object stores, which have
none, by a manifest written last). A folder without a manifest of the wanted fingerprint does not exist for readers.
The fingerprint covers the configuration of the stage and the manifests it read: an unchanged stage is not run again,
an interrupted one goes on from its parts, a changed one starts from the beginning.
"""

import os
import uuid
from dataclasses import dataclass
from typing import Any, Final

from fgaif_ray.errors import UserError
from fgaif_ray.storage.files import (
    MANIFEST,
    broken_file,
    exists,
    filesystem_of,
    is_local,
    join,
    list_files,
    read_bytes,
    read_json,
    remove_folder,
    write_bytes,
    write_json,
)

COPIED_FROM: Final = "copied_from"
"""Entry in the manifest of a stage that is a copy of another run's: replacing it loses nothing."""


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
        """The folder of the published stage."""
        return join(self.run, self.name)

    @property
    def partial(self) -> str:
        """The folder that the stage writes until it is published."""
        return join(self.run, f"{self.name}.partial")

    def is_complete(self) -> bool:
        """Tell whether this stage (same fingerprint) has been published."""
        manifest = read_manifest(self.run, self.name)
        return manifest is not None and manifest["fingerprint"] == self.fingerprint

    def is_begun(self) -> bool:
        """Tell whether the partial folder holds parts of this stage (same fingerprint)."""
        marker = join(self.partial, "_fingerprint")
        return exists(marker) and read_bytes(marker).decode() == self.fingerprint

    @property
    def readable_folder(self) -> str | None:
        """Where its parts are, all of them or those of an interrupted run; None where there are none."""
        if self.is_complete():
            return self.folder
        return self.partial if self.is_begun() else None

    def begin(self, *, overwrite: bool = False) -> None:
        """Make the partial folder ready: parts of an interrupted run of the same fingerprint stay, others go.

        Args:
            overwrite: whether ``publish`` may replace a finished stage of another fingerprint.

        Raises:
            UserError: there is such a stage; the message says what would be lost.
        """
        begun = self.is_begun()
        if not begun and not overwrite:
            self.require_replaceable()
        filesystem, path = filesystem_of(self.partial)
        if filesystem.exists(path) and not begun:
            filesystem.rm(path, recursive=True)
        filesystem.makedirs(path, exist_ok=True)
        write_bytes(join(self.partial, "_fingerprint"), self.fingerprint.encode())

    def require_replaceable(self) -> None:
        """Raises UserError where publishing would replace a finished stage of another fingerprint.

        A copy of another run's stage may go: that run still has it.
        """
        published = read_manifest(self.run, self.name)
        if published is None or published["fingerprint"] == self.fingerprint or COPIED_FROM in published:
            return
        found = ", ".join(filter(None, (_size(published), _published_at(self.folder))))
        raise UserError(
            f"{self.folder} is finished ({found}) and was made with other settings or inputs: give another run.dir, or "
            "add --overwrite (--set run.overwrite=true) to replace it."
        )

    def publish(self, details: dict[str, Any]) -> None:
        """Make the partial folder the stage, replacing an older one; ``details`` go into its manifest."""
        filesystem, partial = filesystem_of(self.partial)
        _, folder = filesystem_of(self.folder)
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


def copy_stage(source: str, target: str, name: str, *, overwrite: bool = False) -> None:
    """Publish a copy of a stage of one run, manifest included, in another run.

    Args:
        source: run folder with the stage.
        target: run folder.
        name: of the stage.
        overwrite: whether the copy may replace a finished stage of the target that has another fingerprint.

    Raises:
        ValueError: the source run has not published the stage.
        UserError: the target has such a stage; the message says what would be lost.
    """
    manifest = read_manifest(source, name)
    if manifest is None:
        raise ValueError(f"{join(source, name)} is not there")
    stage = Stage(target, name, manifest.pop("fingerprint"))
    if not overwrite:
        stage.require_replaceable()
    remove_folder(stage.partial)
    stage.begin(overwrite=True)
    for relative, uri in list_files(join(source, name)).items():
        if relative != MANIFEST:
            write_bytes(join(stage.partial, *relative.split("/")), read_bytes(uri))
    del manifest["stage"]
    stage.publish(manifest | {COPIED_FROM: join(source, name)})


def _size(manifest: dict[str, Any]) -> str:
    """Describe how much a finished stage holds, as far as its manifest says."""
    for entry in ("rows", "steps", "images", "sub_sentences", "examples"):
        if entry in manifest:
            return f"{manifest[entry]} {entry.replace('_', '-')}"
    return ""


def _published_at(folder: str) -> str:
    filesystem, path = filesystem_of(join(folder, MANIFEST))
    try:
        return f"{filesystem.modified(path):%Y-%m-%d %H:%M} UTC"
    except NotImplementedError:
        return ""


def read_manifest(run: str, name: str) -> dict[str, Any] | None:
    """Return the manifest of a published stage, or None.

    Raises:
        BrokenFileError: it is there and cannot be read.
    """
    uri = join(run, name, MANIFEST)
    if not exists(uri):
        return None
    manifest = read_json(uri)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("fingerprint"), str):
        raise broken_file(uri, ValueError("it has no fingerprint"))
    return manifest
