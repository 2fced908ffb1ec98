"""The rows of ``evaluation/``: question, policy and answer, with their Parquet schemas."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from fgaif_ray.records import MORE_IMAGES, ImageRow, read_images, write_images

QUESTIONS_SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("which", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("image", pa.string(), nullable=False),
        MORE_IMAGES,
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("temperature", pa.float32(), nullable=False),
        pa.field("max_tokens", pa.int32(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
    ]
)
ANSWERS_SCHEMA: Final = pa.schema(
    [
        *QUESTIONS_SCHEMA,
        pa.field("response", pa.string(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
    ]
)
REJECTED_SCHEMA: Final = pa.schema([*QUESTIONS_SCHEMA, pa.field("reason", pa.string(), nullable=False)])
REJECTED_FOLDER: Final = "rejected"
"""Folder inside the stage that holds the questions about images that cannot be read."""
_OWN_COLUMNS: Final = [name for name in QUESTIONS_SCHEMA.names if name not in ("image", MORE_IMAGES.name)]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationQuestion(ImageRow):
    """A question to one of the two policies.

    Example::

        EvaluationQuestion(
            id="0f3a...",
            which="before",
            task="greedy",
            image="images/heldout-000007.png",
            prompt="Describe this image.",
            temperature=0.0,
            max_tokens=128,
            seed=1234,
        )
    """

    id: str
    """Identity of the question to this policy."""
    which: str
    """``BEFORE`` or ``AFTER``; all questions of a block have the same."""
    task: str
    """``SAMPLED``, ``GREEDY``, ``POPE``, or the name of a benchmark."""
    prompt: str
    temperature: float
    """0 is greedy."""
    max_tokens: int
    seed: int

    @property
    def images(self) -> tuple[str, ...]:
        """Path or URI of each image; some questions of benchmarks have none, and ``image`` is empty then."""
        return (self.image, *self.more_images) if self.image else ()

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "EvaluationQuestion":
        """Build it from plain values; others may be there too."""
        return cls(**{name: row[name] for name in _OWN_COLUMNS}, **read_images(row))

    def to_row(self) -> dict[str, Any]:
        """Return the plain values of ``QUESTIONS_SCHEMA``."""
        return {name: getattr(self, name) for name in QUESTIONS_SCHEMA.names} | write_images(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationAnswer:
    """A row of ``evaluation/`` or of a benchmark's folder: what a policy answered.

    Example: ``EvaluationAnswer(question=question, text="A red star.", tokens=6, finish_reason="stop")``
    """

    question: EvaluationQuestion
    text: str
    """The decoded answer, without special tokens; the column ``response``."""
    tokens: int
    """Number of sampled tokens."""
    finish_reason: str
    """``stop`` or ``length``."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "EvaluationAnswer":
        """Build it from plain values."""
        return cls(
            question=EvaluationQuestion.from_row(row),
            text=row["response"],
            tokens=row["tokens"],
            finish_reason=row["finish_reason"],
        )

    def to_row(self) -> dict[str, Any]:
        """Return the plain values of ``ANSWERS_SCHEMA``."""
        answer = {"response": self.text, "tokens": self.tokens, "finish_reason": self.finish_reason}
        return self.question.to_row() | answer


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedQuestion:
    """A question whose image cannot be read.

    Example: ``RejectedQuestion(question=question, reason="Cannot read the image images/heldout-000007.png ...")``
    """

    question: EvaluationQuestion
    reason: str
    """Why, for people."""

    def to_row(self) -> dict[str, Any]:
        """Return the plain values of ``REJECTED_SCHEMA``."""
        return self.question.to_row() | {"reason": self.reason}
