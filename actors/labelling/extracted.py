"""What goes from the extraction workers to the verifiers: responses with the facts of their segments, in blocks."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from actors.engine.blocks import seal, table_of, unseal
from fgaif_ray.records import RESPONSES_SCHEMA, Fact, Response
from fgaif_ray.segments import Span

EXTRACTED_SCHEMA: Final = pa.schema(
    [
        *RESPONSES_SCHEMA,
        pa.field("spans", pa.list_(pa.list_(pa.int32())), nullable=False),
        pa.field("facts", pa.string()),  # JSON, [segments] lists of {"type", "text"}; null where rejected
        pa.field("reason", pa.string()),
        pa.field("unavailable", pa.string()),
    ]
)
FATAL_SCHEMA: Final = pa.schema([pa.field("fatal", pa.string(), nullable=False)])
"""Of a block without rows: why the job has to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractedResponse:
    """A response after extraction: with its facts, rejected, or without an answer.

    Example::

        ExtractedResponse(
            response=response,  # "A dog. It is brown."
            spans=(Span(0, 7), Span(7, 19)),
            facts=((Fact("existence", "There is a dog."),), (Fact("attribute", "The dog is brown."),)),
        )
    """

    response: Response
    spans: tuple[Span, ...]
    """``[segments]`` characters of each."""
    facts: tuple[tuple[Fact, ...], ...] | None
    """``[segments]`` facts of each; None where there are none to be had."""
    reason: str | None = None
    """Why it is rejected."""
    unavailable: str | None = None
    """Why the endpoint has no answer: the response stays pending."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "ExtractedResponse":
        """Build it from plain values."""
        facts = None if row["facts"] is None else json.loads(row["facts"])
        return cls(
            response=Response.from_row(row),
            spans=tuple(Span(start, end) for start, end in row["spans"]),
            facts=None if facts is None else tuple(tuple(map(Fact.from_row, of_segment)) for of_segment in facts),
            reason=row["reason"],
            unavailable=row["unavailable"],
        )

    def to_row(self) -> dict[str, Any]:
        """Return the plain values of ``EXTRACTED_SCHEMA``."""
        facts = None if self.facts is None else [[fact.to_row() for fact in of_segment] for of_segment in self.facts]
        return self.response.to_row() | {
            "spans": [(span.start, span.end) for span in self.spans],
            "facts": None if facts is None else json.dumps(facts),
            "reason": self.reason,
            "unavailable": self.unavailable,
        }


def seal_extracted(rows: Iterable[ExtractedResponse]) -> pa.Table:
    """Wrap the rows of a block for the way to a verifier."""
    return seal(table_of(rows, EXTRACTED_SCHEMA))


def seal_fatal(reason: str) -> pa.Table:
    """Wrap the reason why the job has to stop, in place of a block."""
    return seal(pa.table({"fatal": [reason]}, schema=FATAL_SCHEMA))


def unseal_extracted(sealed: pa.Table) -> list[ExtractedResponse] | str:
    """Unwrap the rows of a block, or the reason why the job has to stop."""
    block = unseal(sealed)
    if block.schema.equals(FATAL_SCHEMA):
        return str(block.column("fatal")[0].as_py())
    return [ExtractedResponse.from_row(row) for row in block.to_pylist()]
