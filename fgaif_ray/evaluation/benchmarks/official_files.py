"""The official files of a benchmark, as users put them into a folder."""

import ast
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from fgaif_ray import storage
from fgaif_ray.errors import UserError

DOCUMENTATION: Final = "docs/benchmarks.md"


class OfficialFiles:
    """The official files of a benchmark in a user's folder. It remembers the digests of the files that were read."""

    def __init__(self, title: str, name: str, folder: str) -> None:
        """Args:
        title: of the benchmark, for messages.
        name: of its section below ``evaluate.benchmarks``.
        folder: path or URI.
        """
        self._title, self._name, self.folder = title, name, folder
        self.digests: dict[str, str] = {}

    def find(self, *names: str) -> str | None:
        """Return the first of these names that is a file of the folder."""
        return next((name for name in names if storage.exists(storage.join(self.folder, name))), None)

    def text(self, *names: str) -> str:
        """Return the text of the first of these files that exists.

        Raises:
            UserError: none exists, or it is not text.
        """
        name = self.find(*names)
        if name is None:
            raise UserError(
                f"{self.folder} holds no {' or '.join(names)}: put the official files of {self._title} there "
                f"({DOCUMENTATION} says where they are) or correct evaluate.benchmarks.{self._name}.path."
            )
        data = storage.read_bytes(storage.join(self.folder, name))
        self.digests[name] = hashlib.sha256(data).hexdigest()[:16]
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise self.fault(name, "it is not UTF-8 text") from error

    def rows(self, *names: str) -> list[dict[str, Any]]:
        """Read the objects of a JSON array or of JSON lines.

        Raises:
            UserError: no such file, or it has another form.
        """
        name, rows = self._json(names, _array_or_lines)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise self.fault(name, "it is not a list of objects")
        return rows

    def checked_rows(self, *names: str, **kinds: type) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the objects of ``rows`` with their numbers, from 1, that have these keys with values of these types.

        Raises:
            UserError: as ``rows``, or one has not.
        """
        for number, row in enumerate(self.rows(*names), start=1):
            self.check(row, names[0], number, **kinds)
            yield number, row

    def object(self, *names: str) -> dict[str, Any]:
        """Read the object of a JSON file; raises UserError as ``rows`` does."""
        name, value = self._json(names, json.loads)
        if not isinstance(value, dict):
            raise self.fault(name, "it is not a JSON object")
        return value

    def _json(self, names: Sequence[str], parse: Callable[[str], Any]) -> tuple[str, Any]:
        """The name of the file that was read, and what is in it."""
        text = self.text(*names)
        name = self.find(*names) or names[0]
        try:
            return name, parse(text)
        except json.JSONDecodeError as error:
            raise self.fault(name, f"it is not JSON ({error.msg}, line {error.lineno})") from error

    def fault(self, name: str, what: str) -> UserError:
        """Make the error that says what is wrong with a file."""
        return UserError(f"{storage.join(self.folder, name)} is not an official file of {self._title}: {what}.")

    def check(self, row: Mapping[str, Any], name: str, number: int, /, **kinds: type) -> None:
        """Raise UserError where a row lacks a key or its value has another type; ``number`` counts from 1."""
        for key, kind in kinds.items():
            if not isinstance(row.get(key), kind):
                raise self.fault(name, f"entry {number} has no {key} of type {kind.__name__}")


def python_text(source: str, name: str) -> str | None:
    """Return the text that a Python source assigns to a name at its top level, without running it."""
    try:
        statements = ast.parse(source).body
    except SyntaxError:
        return None
    for statement in statements:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
            if name in names and isinstance(statement.value.value, str):
                return statement.value.value
    return None


def _array_or_lines(text: str) -> Any:
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.split("\n") if line.strip()]
