"""What verifiers say about their own answers, a row for each verified block, beside the rows of ``feedback/``."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

if TYPE_CHECKING:
    from actors.labelling.fact_checker import FactQuestion, Findings

CHECKS_FOLDER: Final = "checks"
"""Folder inside the stage that holds a row of ``CHECKS_SCHEMA`` for each verified block."""
CHECKS_SCHEMA: Final = pa.schema(
    [
        pa.field("second", pa.bool_(), nullable=False),
        pa.field("questions", pa.int64(), nullable=False),
        pa.field("answer_mass", pa.float64(), nullable=False),
        pa.field("prompt_tokens", pa.int64(), nullable=False),
        pa.field("cached_tokens", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationCheck:
    """What a verifier's answers about one block, or several, were like.

    Example::

        VerificationCheck(
            second=False, questions=40, answer_mass=38.9, prompt_tokens=26_000, cached_tokens=21_000
        )
    """

    second: bool
    """Whether it is the second verifier."""
    questions: int = 0
    """Answered ones, without control items."""
    answer_mass: float = 0.0
    """Sum over them of P(yes) + P(no), of the whole vocabulary."""
    prompt_tokens: int = 0
    """Tokens of all prompts, image tokens and control items included."""
    cached_tokens: int = 0
    """Those of them that were in the engine's prefix cache."""

    @classmethod
    def of(cls, second: bool, found: "Findings", own: "Sequence[FactQuestion]") -> "VerificationCheck":
        """Sum up the answers of a block; ``own`` are the questions without control items."""
        masses = [found.answers[question].mass for question in own if question in found.answers]
        return cls(
            second=second,
            questions=len(masses),
            answer_mass=math.fsum(masses),
            prompt_tokens=found.prompt_tokens,
            cached_tokens=found.cached_tokens,
        )

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "VerificationCheck":
        """Build it from plain values."""
        return cls(**{name: row[name] for name in CHECKS_SCHEMA.names})

    def to_row(self) -> dict[str, Any]:
        """Return the plain values of ``CHECKS_SCHEMA``."""
        return {name: getattr(self, name) for name in CHECKS_SCHEMA.names}

    def merge(self, other: "VerificationCheck") -> "VerificationCheck":
        """Return the check of both blocks, which one verifier has answered."""
        return VerificationCheck(
            second=self.second,
            questions=self.questions + other.questions,
            answer_mass=self.answer_mass + other.answer_mass,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
        )
