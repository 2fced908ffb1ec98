"""The rows that only sampling has: its tasks, and the images and prompts that it rejects."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

TASK_SCHEMA: Final = pa.schema([pa.field("image", pa.string()), pa.field("prompt", pa.string())])
REJECTED_IMAGES_SCHEMA: Final = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in ("image", "prompt", "reason")]
)
REJECTED_FOLDER: Final = "rejected"
"""Folder inside the stage that holds the parts of rejected images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingTask:
    """An image and a prompt that the policy is to answer.

    Example: ``SamplingTask(image="photos/dog.jpg", prompt="Describe this image.")``
    """

    image: str
    """Path or URI."""
    prompt: str

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "SamplingTask":
        """Build it from plain values; others may be there too."""
        return cls(image=row["image"], prompt=row["prompt"])

    def to_row(self) -> dict[str, str]:
        """Return the plain values of ``TASK_SCHEMA``."""
        return {"image": self.image, "prompt": self.prompt}


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedImage:
    """A row of ``responses/rejected/``: an image and a prompt that gave no response.

    Example: ``RejectedImage(image="photos/dog.jpg", prompt="Describe this image.", reason="it is cut short")``
    """

    image: str
    """Path or URI."""
    prompt: str
    reason: str
    """Why, for people."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "RejectedImage":
        """Build it from plain values."""
        return cls(image=row["image"], prompt=row["prompt"], reason=row["reason"])

    def to_row(self) -> dict[str, str]:
        """Return the plain values of ``REJECTED_IMAGES_SCHEMA``."""
        return {"image": self.image, "prompt": self.prompt, "reason": self.reason}
