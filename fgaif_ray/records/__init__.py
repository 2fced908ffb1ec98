"""The rows that flow between jobs: a frozen dataclass for each, beside its Parquet schema, and their constants.

Rows are plain values in Parquet, in JSON and in a sealed block of Ray Data. Whoever reads them calls ``from_row``, and
whoever writes them ``to_row``; in between they have attributes.
"""

from fgaif_ray.records.codes import (
    ABSENT,
    AI,
    CLASS_NAMES,
    CONSISTENT,
    FACT_TYPES,
    HALLUCINATED,
    HUMAN,
    LABEL_SOURCES,
    NOISE,
    NOVELTY_TYPE,
    PROVIDED,
)
from fgaif_ray.records.facts import Fact, JudgedFact, VerifiedFact
from fgaif_ray.records.feedback import (
    FEEDBACK_COLUMNS,
    Feedback,
    Segment,
    VerifiedSegment,
    feedback_schema,
)
from fgaif_ray.records.identity import fingerprint, sample_identity
from fgaif_ray.records.images import (
    MORE_IMAGES,
    ImageRow,
    image_fields,
    images_digest,
    images_key,
    read_images,
    write_images,
)
from fgaif_ray.records.response import REJECTED_SCHEMA, RESPONSE_COLUMNS, RESPONSES_SCHEMA, RejectedResponse, Response

__all__ = [
    "ABSENT",
    "AI",
    "CLASS_NAMES",
    "CONSISTENT",
    "FACT_TYPES",
    "FEEDBACK_COLUMNS",
    "HALLUCINATED",
    "HUMAN",
    "LABEL_SOURCES",
    "MORE_IMAGES",
    "NOISE",
    "NOVELTY_TYPE",
    "PROVIDED",
    "REJECTED_SCHEMA",
    "RESPONSES_SCHEMA",
    "RESPONSE_COLUMNS",
    "Fact",
    "Feedback",
    "ImageRow",
    "JudgedFact",
    "RejectedResponse",
    "Response",
    "Segment",
    "VerifiedFact",
    "VerifiedSegment",
    "feedback_schema",
    "fingerprint",
    "image_fields",
    "images_digest",
    "images_key",
    "read_images",
    "sample_identity",
    "write_images",
]
