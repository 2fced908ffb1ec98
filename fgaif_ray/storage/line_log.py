"""Append-only JSON lines of many writers in one folder, readable after any of them was killed.

Every writer has its own file. On a local or shared file system the operating system has a line when ``append``
returns, so SIGKILL cannot lose it. Object stores cannot append; there ``flush`` writes a file per call.
"""

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Final

import fsspec

from fgaif_ray import storage

_encode: Final = json.JSONEncoder(separators=(",", ":")).encode


class LineLog:
    """One writer's part of a log.

    Example: ``LineLog("runs/a/extraction-cache", "answers").append({"key": "0f3a...", "answer": {}})``
    """

    def __init__(self, folder: str, prefix: str, writer: str | None = None) -> None:
        """Prepare without writing.

        Args:
            folder: local path or URI; made at the first line.
            prefix: of the file names.
            writer: the rest of them, which no other writer has; None draws one.
        """
        self.is_buffered = not storage.is_local(folder)
        """Whether lines wait for ``flush``."""
        self._folder = folder if self.is_buffered else folder.removeprefix("file://")
        self._name = f"{prefix}-{writer or uuid.uuid4().hex}"
        self._path = storage.join(self._folder, f"{self._name}.jsonl")
        self._lines: list[str] = []
        self._flushes = 0
        self._has_folder = False

    def append(self, value: Mapping[str, Any]) -> None:
        """Add one line."""
        self.append_json(_encode(value))

    def append_json(self, text: str) -> None:
        """Add one line that is JSON already."""
        line = f"{text}\n"
        if self.is_buffered:
            self._lines.append(line)
            return
        if not self._has_folder:
            os.makedirs(self._folder, exist_ok=True)
            self._has_folder = True
        # Closed each time: network file systems hand a file over when it is closed. `os.open` takes a third of `open`.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def flush(self) -> None:
        """Write pending lines."""
        if self._lines:
            lines, self._lines = self._lines, []
            self._flushes += 1
            name = f"{self._name}-{self._flushes:06d}.jsonl"
            storage.write_bytes(storage.join(self._folder, name), "".join(lines).encode())


def read_lines(folder: str, prefix: str, writer: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the file and the value of every line of a log; truncated lines are left out.

    Args:
        folder: local path or URI; it need not be there.
        prefix: of the file names.
        writer: whose lines; everybody's if left out.
    """
    filesystem, path = fsspec.core.url_to_fs(folder)
    for name in sorted(filesystem.glob(f"{path.rstrip('/')}/{prefix}-{writer}*.jsonl")):
        with filesystem.open(name, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    continue  # its writer was killed, or is writing
                try:
                    value = json.loads(line)
                except ValueError:
                    continue  # a machine that lost power may leave such a line
                if isinstance(value, dict):
                    yield name, value
