"""The rows of ``responses/`` and of ``feedback_rejected/``, with their Parquet schemas."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from fgaif_ray.records.images import MORE_IMAGES, ImageRow, read_images, write_images

RESPONSES_SCHEMA: Final = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("image", pa.string(), nullable=False),
        MORE_IMAGES,
        pa.field("image_sha256", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32())),
        pa.field("finish_reason", pa.string()),
        pa.field("model", pa.string(), nullable=False),
    ]
)
RESPONSE_COLUMNS: Final = [name for name in RESPONSES_SCHEMA.names if name != "token_ids"]
"""The columns to read where nobody needs the sampled ids."""
REJECTED_SCHEMA: Final = pa.schema([*RESPONSES_SCHEMA, pa.field("reason", pa.string(), nullable=False)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Response(ImageRow):
    """A row of ``responses/``: what a model said about an image, or several.

    Example::

        Response(
            sample_id="9f2c...",
            image="photos/dog.jpg",
            image_sha256="51ab...",
            prompt="Describe this image.",
            text="A red dog.",
            token_ids=(319, 2654, 11203, 29889, 2),
            finish_reason="stop",
            model="llava-hf/llava-1.5-7b-hf",
        )
    """

    sample_id: str
    """Identity from end to end, sha256 in hex (see ``sample_identity``)."""
    image_sha256: str
    """Of the bytes of the image file, in hex; of several see ``images_digest``."""
    prompt: str
    text: str
    """The decoded response, without special tokens; the column ``response``."""
    token_ids: tuple[int, ...] | None = None
    """``[response_tokens]`` ids as sampled, end of sequence included; None for a provided response."""
    finish_reason: str | None = None
    """Why sampling ended: ``stop`` or ``length``; None for a provided response."""
    model: str
    """Name or path of the model that said it, or ``PROVIDED``."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Response":
        """Build it from plain values; the nullable columns may be missing, and others may be there too."""
        token_ids = row.get("token_ids")
        return cls(
            sample_id=row["sample_id"],
            **read_images(row),
            image_sha256=row["image_sha256"],
            prompt=row["prompt"],
            text=row["response"],
            token_ids=None if token_ids is None else tuple(token_ids),
            finish_reason=row.get("finish_reason"),
            model=row["model"],
        )

    def to_row(self) -> dict[str, Any]:
        """Return the plain values of ``RESPONSES_SCHEMA``."""
        return {
            "sample_id": self.sample_id,
            **write_images(self),
            "image_sha256": self.image_sha256,
            "prompt": self.prompt,
            "response": self.text,
            "token_ids": None if self.token_ids is None else list(self.token_ids),
            "finish_reason": self.finish_reason,
            "model": self.model,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedResponse:
    """A row of ``feedback_rejected/``: a response that could not be labelled.

    Example: ``RejectedResponse(response=response, reason="refusal: I cannot help with that.")``
    """

    response: Response
    reason: str
    """The kind of failure, a colon, and what happened."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "RejectedResponse":
        """Build it from plain values."""
        return cls(response=Response.from_row(row), reason=row["reason"])

    def to_row(self) -> dict[str, Any]:
        """Return the plain values of ``REJECTED_SCHEMA``."""
        return self.response.to_row() | {"reason": self.reason}
