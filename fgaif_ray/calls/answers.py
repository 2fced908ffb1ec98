"""Answers of the extraction model, found by the content of the question.

The key of a call covers everything its answer depends on, so an answer serves every run, response and segment that
asks the same, and a changed prompt or model asks again.
"""

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from fgaif_ray import storage
from fgaif_ray.calls.chat_json import MessagesEncoder
from fgaif_ray.calls.unusable import Reason, UnusableAnswer
from fgaif_ray.records import Fact
from fgaif_ray.storage.line_log import LineLog, read_lines

PREFIX: Final = "answers"


@dataclass(frozen=True, slots=True)
class CallAnswer:
    """The result of one paid call: the facts, or the reason why the answer cannot be used.

    Example: ``CallAnswer([[Fact("existence", "There is a dog.")]], None, None, "", 120, 31)``
    """

    facts: list[list[Fact]] | None
    """``[segments]`` lists, one list in ``segment`` mode; None for an answer that cannot be used, or is a text."""
    reason: Reason | None
    """Why it cannot be used."""
    detail: str | None
    content: str
    """The start of an unusable answer, for the repair try; the whole answer if it is a text."""
    prompt_tokens: int
    completion_tokens: int

    def error(self) -> UnusableAnswer:
        """Why the answer cannot be used."""
        assert self.reason is not None and self.detail is not None
        return UnusableAnswer(self.reason, self.detail)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable form that ``from_json`` reads back."""
        usage = [self.prompt_tokens, self.completion_tokens]
        if self.facts is None:
            return {"reason": self.reason, "detail": self.detail, "content": self.content, "usage": usage}
        facts = [[{"type": fact.type, "text": fact.text} for fact in segment] for segment in self.facts]
        return {"facts": facts, "usage": usage}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read the form that ``to_json`` returns."""
        facts = value.get("facts")
        if facts is not None:
            facts = [[Fact(fact["type"], fact["text"]) for fact in segment] for segment in facts]
        return cls(facts, value.get("reason"), value.get("detail"), value.get("content", ""), *value["usage"])


def call_key(**content: Any) -> str:
    """Return the key of a call: sha256, in hex, of everything JSON-serialisable that its answer depends on."""
    return hashlib.sha256(_canonical(content)).hexdigest()


class CallKeys:
    """``call_key`` for many calls that differ only in their messages: the shared part is encoded once.

    Example: ``CallKeys(model="m", options={})(messages) == call_key(model="m", options={}, messages=messages)``
    """

    def __init__(self, **shared: Any) -> None:
        """Encode what the calls share.

        Raises:
            ValueError: a name that does not come after "messages" in the alphabet.
        """
        if min(shared, default="messages") <= "messages":
            raise ValueError(f"what calls share needs names after 'messages', not {min(shared, default=None)!r}")
        self._rest = b", " + _canonical(shared)[1:]

    def __call__(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The key of one call."""
        text = _MESSAGES(messages).encode(errors="surrogatepass")
        return hashlib.sha256(b'{"messages": ' + text + self._rest).hexdigest()


_CANONICAL: Final = json.JSONEncoder(sort_keys=True, ensure_ascii=False)
_MESSAGES: Final = MessagesEncoder(_CANONICAL)


def _canonical(content: Any) -> bytes:
    return _CANONICAL.encode(content).encode(errors="surrogatepass")


def model_identity(model: str, serve_model: str | None) -> str:
    """Identify the model behind an endpoint, for keys.

    A checkpoint that the job serves itself from a local folder is identified by its files too, since training may write
    new weights to the same place.
    """
    if serve_model is None:
        return model
    if not os.path.isdir(serve_model):
        return serve_model
    files = sorted(
        (entry.name, entry.stat().st_size, entry.stat().st_mtime_ns)
        for entry in os.scandir(serve_model)
        if entry.is_file()
    )
    return f"{serve_model} {hashlib.sha256(json.dumps(files).encode()).hexdigest()}"


def cache_folder(run: str, cache: str | None, purpose: str = "extraction") -> str:
    """Return the folder of answers: the configured one, or one of the run for each purpose of calls."""
    return cache if cache is not None else storage.join(run, f"{purpose}-cache")


class AnswerWriter:
    """One worker's file in a cache folder."""

    def __init__(self, folder: str, writer: str | None = None) -> None:
        self._log = LineLog(folder, PREFIX, writer)

    @property
    def is_buffered(self) -> bool:
        """Whether answers wait for ``flush``."""
        return self._log.is_buffered

    def keep(self, key: str, answer: CallAnswer) -> str:
        """Add an answer; returns it as JSON."""
        text = json.dumps(answer.to_json())
        self._log.append_json(f'{{"key": "{key}", "answer": {text}}}')
        return text

    def flush(self) -> None:
        """Write pending answers; on object stores, an interruption before this repeats the calls."""
        self._log.flush()


class AnswerIndex:
    """Every answer of a cache folder by its key. The answers are on disk, so memory stays flat."""

    def __init__(self, folder: str) -> None:
        """Read the folder."""
        # An empty name is SQLite's own temporary file, deleted with the connection.
        self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE answers (key BLOB PRIMARY KEY, answer TEXT) WITHOUT ROWID")
        self._folder = folder
        self.read()

    def read(self, writer: str = "") -> None:
        """Read the answers kept in the folder, or those of one writer."""
        lines = (line for _, line in read_lines(self._folder, PREFIX, writer))
        self.add(
            (line["key"], json.dumps(line["answer"]))
            for line in lines
            if isinstance(line.get("key"), str) and isinstance(line.get("answer"), dict)
        )

    def add(self, answers: Iterable[tuple[str, str]]) -> None:
        """Add keys and answers, as JSON."""
        rows = ((bytes.fromhex(key), answer) for key, answer in answers)
        self._database.execute("BEGIN")
        self._database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)
        self._database.execute("COMMIT")

    def find(self, key: str) -> str | None:
        """Return the answer to a call, as JSON, or None."""
        row = self._database.execute("SELECT answer FROM answers WHERE key = ?", (bytes.fromhex(key),)).fetchone()
        return None if row is None else str(row[0])

    def __len__(self) -> int:
        (count,) = self._database.execute("SELECT COUNT(*) FROM answers").fetchone()
        return int(count)

    def close(self) -> None:
        """Free the disk space."""
        self._database.close()
