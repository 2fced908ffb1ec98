"""Answers of the extraction endpoint, kept from the moment they arrive.

A call that was paid is not repeated after an interruption, also where its block never got a part file.
"""

import json
import uuid
from dataclasses import dataclass
from typing import Any, Final, Self

import fsspec

from fgaif_ray import storage

PREFIX: Final = "extraction-"
SUFFIX: Final = ".jsonl"

FactRow = dict[str, str]
"""``{"type", "text"}``."""


@dataclass(frozen=True, slots=True)
class Extraction:
    """What the endpoint made of one response: its facts, or the reason why it has none.

    Example: ``Extraction("5f0c...", [[{"type": "existence", "text": "There is a dog."}]], None, {"calls": 1})``
    """

    sample_id: str
    """Empty in a line that only accounts for calls."""
    facts: list[list[FactRow]] | None
    """``[segments]`` lists of facts; None for a response that is rejected."""
    reason: str | None
    usage: dict[str, int]
    """Calls and tokens that the writer has used since its line before."""

    def to_json(self) -> str:
        """One line; ``from_json`` reads it back."""
        value = {"sample_id": self.sample_id, "facts": self.facts, "reason": self.reason, "usage": self.usage}
        return json.dumps(value, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what ``to_json`` wrote."""
        value: dict[str, Any] = json.loads(text)
        return cls(value["sample_id"], value["facts"], value["reason"], value["usage"])


class ExtractionJournal:
    """The file to which one extraction worker appends.

    On a local or shared file system every line is on its way to the disk when ``append`` returns. Object stores cannot
    append: there a file is written per ``flush``, and an interruption repeats the calls since the last one.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._name = uuid.uuid4().hex
        self._lines: list[str] = []
        self._flushes = 0

    def append(self, extraction: Extraction) -> None:
        """Keep one answer."""
        self._lines.append(extraction.to_json() + "\n")
        if storage.is_local(self._folder):
            self.flush()

    def flush(self) -> None:
        """Write the lines that are not written yet."""
        if not self._lines:
            return
        data, self._lines = "".join(self._lines).encode(), []
        if storage.is_local(self._folder):
            path = storage.join(self._folder.removeprefix("file://"), f"{PREFIX}{self._name}{SUFFIX}")
            with open(path, "ab", buffering=0) as file:
                file.write(data)
        else:
            name = f"{PREFIX}{self._name}-{self._flushes:06d}{SUFFIX}"
            storage.write_bytes(storage.join(self._folder, name), data)
            self._flushes += 1


def read_extractions(folder: str) -> list[Extraction]:
    """The answers kept in a folder; a line that an interruption cut short is left out."""
    extractions = []
    filesystem, paths = _journals(folder)
    for path in paths:
        *lines, _ = filesystem.cat_file(path).decode(errors="replace").split("\n")
        extractions += [Extraction.from_json(line) for line in lines]
    return extractions


def remove_extractions(folder: str) -> None:
    """Delete the journals of a folder."""
    filesystem, paths = _journals(folder)
    for path in paths:
        filesystem.rm_file(path)


def _journals(folder: str) -> tuple[fsspec.AbstractFileSystem, list[str]]:
    filesystem, path = fsspec.core.url_to_fs(folder)
    return filesystem, sorted(filesystem.glob(f"{path.rstrip('/')}/{PREFIX}*{SUFFIX}"))
