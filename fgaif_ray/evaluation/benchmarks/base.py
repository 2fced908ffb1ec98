"""The shared parts of all benchmarks: questions, official files, and scores as sums that a bootstrap can redraw."""

import ast
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from fgaif_ray import storage
from fgaif_ray.errors import UserError
from fgaif_ray.segments import split_segments
from fgaif_ray.statistics.intervals import Floats

DOCUMENTATION: Final = "docs/benchmarks.md"
RATE: Final = 100.0
"""Scale of a metric that is shown in percent."""


@dataclass(frozen=True, slots=True)
class BenchmarkQuestion:
    """One question of a benchmark.

    Example: ``BenchmarkQuestion("popular/7", "COCO_val2014_000000310196.jpg", "Is there a car in the image?", 32)``
    """

    id: str
    image: str
    """Its name in the official file; empty for a question without one."""
    prompt: str
    """The official prompt, without the configured suffix."""
    max_tokens: int


@dataclass(frozen=True, slots=True)
class JudgeQuestion:
    """A question to a judge about one answer, or about one answer beside a reference."""

    id: str
    """Id of the question that was answered."""
    swapped: bool
    """Whether the answer comes first, where the official order has the reference first."""
    messages: list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Review:
    """A judge's review, or the reason why there is none."""

    text: str | None
    reason: str | None = None


Reviews = Mapping[tuple[str, bool], Review]
"""Reviews by question id and whether the order was swapped."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The answers of one model, as columns whose sums give every metric.

    Example: ``Scores(("1",), ("a.jpg",), np.array([[1.0, 1.0]]), {"accuracy": RATE}, ratio, {"unreadable": 0})``
    """

    ids: tuple[str, ...]
    """``[rows]`` ids of the scored questions."""
    images: tuple[str, ...]
    """``[rows]`` image of each row; intervals draw images."""
    columns: Floats
    """``[rows, columns]``"""
    scales: dict[str, float]
    """Metric -> factor with which papers print it."""
    figures: Callable[[Floats], Floats]
    """``[samples, columns]`` sums -> ``[samples, figures]``, NaN where a metric is not defined."""
    counts: dict[str, int] = field(default_factory=dict)
    """Further counts, such as answers that could not be read."""

    @classmethod
    def of(cls, questions: Sequence[BenchmarkQuestion], columns: Floats, **others: Any) -> Self:
        """Of the answers to these questions, ``[rows]``."""
        ids, images = tuple(question.id for question in questions), tuple(question.image for question in questions)
        return cls(ids, images, columns, **others)


class Benchmark(ABC):
    """A benchmark of the policy's answers, with its files read."""

    name: ClassVar[str]
    title: ClassVar[str]
    judged: bool = False
    """Whether scores come from a judge."""

    questions: Sequence[BenchmarkQuestion]
    """The questions in the official order."""
    settings: dict[str, Any]
    """The settings and digests of what was read, for the record."""

    @abstractmethod
    def __init__(self, config: Any) -> None:
        """Read the files that a section of ``evaluate.benchmarks`` names.

        Raises:
            UserError: one is missing or has another form.
        """

    @classmethod
    def read(cls, config: Any, images: Collection[str], *, draw: bool, seed: int) -> Self:  # noqa: ARG003
        """Read the files; ``images``, ``draw`` and ``seed`` are for benchmarks without questions of their own."""
        return cls(config)

    def embedded_images(self) -> dict[str, Callable[[], bytes]]:
        """Images that come within the official file, by name, each as a function that returns the bytes of its file."""
        return {}

    def judge_questions(self, answers: Mapping[str, str]) -> list[JudgeQuestion]:  # noqa: ARG002
        """Questions to the judge about a model's answers, by question id; empty for a benchmark without a judge."""
        return []

    @abstractmethod
    def score(self, answers: Mapping[str, str], reviews: Reviews) -> Scores:
        """Score a model's answers, by question id; a question without an answer is left out and counted."""


@dataclass(frozen=True, slots=True)
class MarkedResponse:
    """A response of a benchmark of reward models, with its errors marked.

    Example: ``MarkedResponse("7", "2343729", "Describe it.", "A red dog.", {"attribute": ((2, 5),)})``
    """

    id: str
    image: str
    """Its name in the official file."""
    prompt: str
    text: str
    errors: Mapping[str, tuple[tuple[int, int], ...]]
    """Type of error -> characters, from the first to the one behind the last."""

    @property
    def segments(self) -> list[str]:
        """The segments that reward models judge."""
        return [self.text[span.start : span.end] for span in split_segments(self.text)]


Verdicts = Mapping[str, Mapping[str, NDArray[np.float32]]]
"""Id of a response -> fact type -> ``[segments, 3]`` probabilities: absent, consistent, hallucinated."""


class RewardBenchmark(ABC):
    """A benchmark of reward models, with its files read."""

    name: ClassVar[str]
    title: ClassVar[str]

    responses: Sequence[MarkedResponse]
    """What the reward models are to judge, in the official order."""
    settings: dict[str, Any]
    """The settings and digests of what was read, for the record."""

    @abstractmethod
    def __init__(self, config: Any) -> None:
        """Read the files that a section of ``evaluate.benchmarks`` names; raises UserError as ``Benchmark`` does."""

    @abstractmethod
    def measure(self, verdicts: Verdicts, seed: int = 0) -> tuple[dict[str, float], dict[str, Any]]:
        """Measure verdicts; a response without any is left out and counted.

        Returns:
            Metric -> factor with which it is printed, and what ``metrics.measure`` returns of answers.
        """


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
        text = self.text(*names)
        name = self.find(*names) or names[0]
        try:
            rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(x) for x in _lines(text)]
        except json.JSONDecodeError as error:
            raise self.fault(name, f"it is not JSON ({error.msg}, line {error.lineno})") from error
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise self.fault(name, "it is not a list of objects")
        return rows

    def object(self, *names: str) -> dict[str, Any]:
        """Read the object of a JSON file; raises UserError as ``rows`` does."""
        text = self.text(*names)
        name = self.find(*names) or names[0]
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise self.fault(name, f"it is not JSON ({error.msg}, line {error.lineno})") from error
        if not isinstance(value, dict):
            raise self.fault(name, "it is not a JSON object")
        return value

    def fault(self, name: str, what: str) -> UserError:
        """Make the error that says what is wrong with a file."""
        return UserError(f"{storage.join(self.folder, name)} is not an official file of {self._title}: {what}.")


def need(row: Mapping[str, Any], files: OfficialFiles, name: str, number: int, /, **kinds: type) -> None:
    """Raise UserError where a row lacks a key or its value has another type; ``number`` counts from 1."""
    for key, kind in kinds.items():
        if not isinstance(row.get(key), kind):
            raise files.fault(name, f"entry {number} has no {key} of type {kind.__name__}")


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


def first_images(questions: Sequence[BenchmarkQuestion], limit: int | None) -> list[BenchmarkQuestion]:
    """Return the questions about the first ``limit`` images; all of them without a limit."""
    if limit is None:
        return list(questions)
    kept = set(list(dict.fromkeys(question.image for question in questions))[:limit])
    return [question for question in questions if question.image in kept]


def _lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip()]
