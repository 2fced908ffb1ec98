"""The rows that only sampling has: its tasks, and the images and prompts that it rejects."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from fgaif_ray.records import MORE_IMAGES, ImageRow, read_images, write_images

TASK_SCHEMA: Final = pa.schema([pa.field("image", pa.string()), MORE_IMAGES, pa.field("prompt", pa.string())])
REJECTED_IMAGES_SCHEMA: Final = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),
        MORE_IMAGES,
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("responses", pa.int32()),
    ]
)
REJECTED_FOLDER: Final = "rejected"
"""Folder inside the stage that holds the parts of rejected images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingTask(ImageRow):
    """Images and a prompt that the policy is to answer, ``sample.samples_per_prompt`` times.

    Example: ``SamplingTask(image="photos/dog.jpg", prompt="Describe this image.")``
    """

    prompt: str

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "SamplingTask":
        """Build it from plain values; others may be there too."""
        return cls(**read_images(row), prompt=row["prompt"])

    def to_row(self) -> dict[str, Any]:
        """Return the plain values of ``TASK_SCHEMA``."""
        return write_images(self) | {"prompt": self.prompt}


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedImage(ImageRow):
    """A row of ``responses/rejected/``: images and a prompt without a response, or with fewer than there should be.

    Example: ``RejectedImage(image="photos/dog.jpg", prompt="Describe this image.", reason="it is cut short")``
    """

    prompt: str
    reason: str
    """Why, for people."""
    responses: int = 1
    """How many responses there would have been."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "RejectedImage":
        """Build it from plain values; tables of earlier versions have no column ``responses``."""
        return cls(**read_images(row), prompt=row["prompt"], reason=row["reason"], responses=row.get("responses") or 1)

    def to_row(self) -> dict[str, Any]:
        """Return the plain values of ``REJECTED_IMAGES_SCHEMA``."""
        return write_images(self) | {"prompt": self.prompt, "reason": self.reason, "responses": self.responses}
