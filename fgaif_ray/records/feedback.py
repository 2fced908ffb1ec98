"""The rows of ``feedback/``: responses with the labels of their segments, and the Parquet schema."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from fgaif_ray.records.codes import AI
from fgaif_ray.records.facts import FACT_STRUCT, JudgedFact, VerifiedFact
from fgaif_ray.records.response import RESPONSE_COLUMNS, RESPONSES_SCHEMA, Response


def feedback_schema(types: Sequence[str]) -> pa.Schema:
    """The schema of ``feedback/``; its labels are structs with a field for each fact type, in this order."""
    codes, words = (pa.struct([pa.field(name, kind) for name in types]) for kind in (pa.int8(), pa.string()))
    segment = pa.struct(
        [
            pa.field("start", pa.int32()),
            pa.field("end", pa.int32()),
            pa.field("text", pa.string()),
            pa.field("facts", pa.list_(FACT_STRUCT)),
            # A label is null where two verifiers disagree and label.disagreement masks it; so is its source.
            pa.field("labels", codes),
            pa.field("ai_labels", codes),
            pa.field("label_sources", words),
        ]
    )
    return pa.schema(
        [
            *RESPONSES_SCHEMA,
            pa.field("segments", pa.list_(segment), nullable=False),
            pa.field("annotator", pa.string(), nullable=False),  # JSON: model names, prompt versions, thresholds
        ]
    )


FEEDBACK_COLUMNS: Final = [*RESPONSE_COLUMNS, "segments", "annotator"]
"""The columns to read where nobody needs the sampled ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedSegment:
    """A segment of a response whose facts have been verified, not yet labelled.

    Example: ``VerifiedSegment(start=0, end=10, text="A red dog.", facts=(fact,))``
    """

    start: int
    """First character in the response."""
    end: int
    """The character after its last one."""
    text: str
    facts: tuple[VerifiedFact, ...]
    """``[facts]``, in the order of their types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment(VerifiedSegment):
    """A labelled segment of a response, part of a row of ``feedback/``.

    Example, where noise has flipped the label of existence::

        Segment(
            start=0,
            end=10,
            text="A red dog.",
            facts=(JudgedFact(type="existence", text="There is a dog.", p_consistent=0.97, consistent=True),),
            labels={"existence": HALLUCINATED, "attribute": ABSENT, "relation": ABSENT},
            ai_labels={"existence": CONSISTENT, "attribute": ABSENT, "relation": ABSENT},
            label_sources={"existence": NOISE, "attribute": AI, "relation": AI},
        )
    """

    facts: tuple[JudgedFact, ...]
    """``[facts]``, in the order of their types."""
    labels: Mapping[str, int | None]
    """The label code to train on by fact type, in the order of the run's; None for a label that is not to be used."""
    ai_labels: Mapping[str, int]
    """The label code by fact type that the AI gave, even if it has been replaced."""
    label_sources: Mapping[str, str | None]
    """One of ``LABEL_SOURCES`` by fact type; None for a label that is not to be used."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Segment":
        """Build it from plain values. Labels of which a row does not say where they come from are the AI's."""
        labels = row["labels"]
        sources = row.get("label_sources") or {name: None if code is None else AI for name, code in labels.items()}
        return cls(
            start=row["start"],
            end=row["end"],
            text=row["text"],
            facts=tuple(JudgedFact.from_row(fact) for fact in row["facts"]),
            labels=labels,
            ai_labels=row.get("ai_labels") or labels,
            label_sources=sources,
        )

    def to_row(self) -> dict[str, Any]:
        """Return its plain values."""
        return {
            "start": self.start,
            "end": self.end,
            "text": self.text,
            "facts": [fact.to_row() for fact in self.facts],
            "labels": dict(self.labels),
            "ai_labels": dict(self.ai_labels),
            "label_sources": dict(self.label_sources),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """A row of ``feedback/``: a response with its labelled segments.

    Example: ``Feedback(response=response, segments=(segment,), annotator='{"verifier": {"model": "v"}}')``
    """

    response: Response
    segments: tuple[Segment, ...]
    """``[segments]``, which cover the whole response in order."""
    annotator: str
    """What the labels depend on, as JSON: names of models, versions of prompts, thresholds."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Feedback":
        """Build it from plain values, at least those of ``FEEDBACK_COLUMNS``."""
        return cls(
            response=Response.from_row(row),
            segments=tuple(Segment.from_row(segment) for segment in row["segments"]),
            annotator=row["annotator"],
        )

    def to_row(self) -> dict[str, Any]:
        """Return the plain values of ``feedback_schema``."""
        segments = [segment.to_row() for segment in self.segments]
        return self.response.to_row() | {"segments": segments, "annotator": self.annotator}
