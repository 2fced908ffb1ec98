"""Atomic facts of a segment, from what an extraction model finds to what verifiers say about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

FACT_STRUCT: Final = pa.struct(
    [
        pa.field("type", pa.string()),
        pa.field("text", pa.string()),
        pa.field("p_consistent", pa.float32()),
        pa.field("consistent", pa.bool_()),
        # Null without a second verifier, and for a fact that it could not be asked about.
        pa.field("second_p_consistent", pa.float32()),
        pa.field("second_consistent", pa.bool_()),
    ]
)
"""A fact in a row of ``feedback/``."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One atomic claim about the image, as it was extracted.

    Example: ``Fact("existence", "There is a dog.")``
    """

    type: str
    """Name of a fact type."""
    text: str

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Fact":
        """Build it from plain values; others may be there too."""
        return cls(row["type"], row["text"])

    def to_row(self) -> dict[str, str]:
        """Return its plain values."""
        return {"type": self.type, "text": self.text}


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedFact:
    """A fact that verifiers were asked about.

    Example: ``VerifiedFact(type="existence", text="There is a dog.", p_consistent=0.97)``
    """

    type: str
    """Name of a fact type."""
    text: str
    p_consistent: float
    """P(yes) of the first verifier, in [0, 1], as exact as float32."""
    second_p_consistent: float | None = None
    """P(yes) of the second one; None without one, and for a fact that it could not be asked about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedFact(VerifiedFact):
    """A fact with the verdicts that its probabilities give at the thresholds; part of a row of ``feedback/``.

    Example: ``JudgedFact(type="existence", text="There is a dog.", p_consistent=0.97, consistent=True)``
    """

    consistent: bool
    """The first verifier's verdict."""
    second_consistent: bool | None = None
    """The second one's; None where it has no P(yes)."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "JudgedFact":
        """Build it from plain values; those of a second verifier may be missing."""
        return cls(
            type=row["type"],
            text=row["text"],
            p_consistent=row["p_consistent"],
            consistent=row["consistent"],
            second_p_consistent=row.get("second_p_consistent"),
            second_consistent=row.get("second_consistent"),
        )

    def to_row(self) -> dict[str, Any]:
        """Return the plain values of ``FACT_STRUCT``."""
        return {field.name: getattr(self, field.name) for field in FACT_STRUCT}
