"""The shared parts of all benchmarks: questions, reviews, and scores as sums that a bootstrap can redraw."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from fgaif_ray.config import BenchmarkConfig
from fgaif_ray.evaluation.benchmarks.official_files import OfficialFiles
from fgaif_ray.segments import split_segments
from fgaif_ray.statistics.intervals import Floats

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


def review_text(reviews: Reviews, question: str, *, swapped: bool = False) -> str:
    """Return the text of a review; empty where there is none."""
    return reviews.get((question, swapped), Review(None)).text or ""


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

    def _ask(
        self, questions: Sequence[BenchmarkQuestion], files: OfficialFiles, config: BenchmarkConfig, **settings: Any
    ) -> None:
        """Set the questions, no more than the configured limit, and the settings with what is to be recorded beside."""
        self.questions = first_images(questions, config.limit)
        self.settings = {"files": files.digests, "questions": len(self.questions), **settings}

    def answered(self, answers: Mapping[str, str]) -> list[BenchmarkQuestion]:
        """List the questions that have an answer."""
        return [question for question in self.questions if question.id in answers]

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


def first_images(questions: Sequence[BenchmarkQuestion], limit: int | None) -> list[BenchmarkQuestion]:
    """Return the questions about the first ``limit`` images; all of them without a limit."""
    if limit is None:
        return list(questions)
    kept = set(list(dict.fromkeys(question.image for question in questions))[:limit])
    return [question for question in questions if question.image in kept]
