"""The rows that flow between jobs: their constants and Parquet schemas.

Label codes follow the reward model's classes: 0 absent (the segment holds no fact of the type), 1 consistent
(all of them hold in the image), 2 hallucinated (at least one does not; FGAIF section 3.2, "one wrong fact is enough"
is our reading).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

FACT_TYPES: Final = ("existence", "attribute", "relation")
"""The kinds of atomic fact of a run that names none (see ``fact_types/``), and of folders that do not say theirs."""

ABSENT: Final = 0
CONSISTENT: Final = 1
HALLUCINATED: Final = 2
CLASS_NAMES: Final = ("absent", "consistent", "hallucinated")

AI: Final = "ai"
HUMAN: Final = "human"
NOISE: Final = "noise"
LABEL_SOURCES: Final = (AI, HUMAN, NOISE)
"""Where a label comes from: the AI's feedback, a person, or a flip on purpose (see ``feedback/overrides.py``)."""

PROVIDED: Final = "given"
"""Stands for the model of a response that came with the data."""


@dataclass(frozen=True)
class Fact:
    """One atomic claim about the image; ``type`` is the name of a fact type."""

    type: str
    text: str


RESPONSES_SCHEMA: Final = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("image", pa.string(), nullable=False),
        pa.field("image_sha256", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32())),
        pa.field("finish_reason", pa.string()),
        pa.field("model", pa.string(), nullable=False),
    ]
)

REJECTED_SCHEMA: Final = pa.schema([*RESPONSES_SCHEMA, pa.field("reason", pa.string(), nullable=False)])

_FACT_TYPE = pa.struct(
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


def feedback_schema(types: Sequence[str]) -> pa.Schema:
    """The schema of ``feedback/``; its labels are structs with a field for each fact type, in this order."""
    codes, words = (pa.struct([pa.field(name, kind) for name in types]) for kind in (pa.int8(), pa.string()))
    segment = pa.struct(
        [
            pa.field("start", pa.int32()),
            pa.field("end", pa.int32()),
            pa.field("text", pa.string()),
            pa.field("facts", pa.list_(_FACT_TYPE)),
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


def sample_identity(image_sha256: str, prompt: str, model: str, sampling: Mapping[str, Any]) -> str:
    """Return the sample id: sha256 over image bytes (by their hash), prompt, model and sampling settings, in hex."""
    canonical = json.dumps([image_sha256, prompt, model, dict(sampling)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def fingerprint(*parts: Any) -> str:
    """Return a short hex digest of JSON-serialisable parts; equal parts give equal fingerprints on every machine."""
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def ai_labels(segment: Mapping[str, Any]) -> Mapping[str, int]:
    """Return the labels that the AI gave a segment of a feedback row, even if they have been replaced."""
    labels: Mapping[str, int] = segment.get("ai_labels") or segment["labels"]
    return labels
