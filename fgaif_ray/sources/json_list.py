"""Reader of one list of a large JSON file, item by item."""

import json
from collections.abc import Iterator
from typing import Any, Final, TextIO

CHUNK: Final = 1 << 20
"""Characters read at a time."""
LARGEST_ITEM: Final = 1 << 26
"""Most characters of an item; beyond that the file is taken to be invalid."""


def iterate_list(file: TextIO, key: str) -> Iterator[Any]:
    """Yield the items of the list under a key of a file's object, without holding the whole file in memory.

    Nothing after the list is read. Only the largest single item has to fit into memory.

    Raises:
        ValueError: the file is not JSON, not an object, or has no list under the key.
    """
    scanner = _Scanner(file)
    scanner.expect("{")
    if scanner.peek() != "}":
        while True:
            name = scanner.value()
            scanner.expect(":")
            if name == key and scanner.peek() == "[":
                yield from scanner.items()
                return
            scanner.skip()
            if scanner.peek() != ",":
                break
            scanner.expect(",")
    scanner.expect("}")
    raise ValueError(f"there is no list {key!r}")


class _Scanner:
    """A position in a JSON file."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._decoder = json.JSONDecoder()
        self._text, self._place, self._ended = "", 0, False

    def _read(self, size: int) -> None:
        more = self._file.read(size)
        self._text, self._place, self._ended = self._text[self._place :] + more, 0, not more

    def peek(self) -> str:
        """Return the next character that is not white space; empty at the end."""
        while True:
            while self._place < len(self._text):
                if not self._text[self._place].isspace():
                    return self._text[self._place]
                self._place += 1
            if self._ended:
                return ""
            self._read(CHUNK)

    def expect(self, character: str) -> None:
        found = self.peek()
        if found != character:
            raise ValueError(f"{character!r} is expected, not {found!r}")
        self._place += 1

    def value(self) -> Any:
        """Return the next value."""
        self.peek()
        size = CHUNK
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._place)
            except json.JSONDecodeError:
                if self._ended or size > LARGEST_ITEM:
                    raise
            else:
                if end < len(self._text) or self._ended:  # else a number may go on
                    self._place = end
                    return value
            self._read(size)
            size *= 2

    def items(self) -> Iterator[Any]:
        """Yield the items of the next list."""
        self.expect("[")
        if self.peek() != "]":
            yield self.value()
            while self.peek() == ",":
                self.expect(",")
                yield self.value()
        self.expect("]")

    def skip(self) -> None:
        """Skip the next value."""
        if self.peek() != "[":
            self.value()
            return
        for _ in self.items():
            pass
