"""The rows of answered control items, with their Parquet schema."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from fgaif_ray.records import MORE_IMAGES, ImageRow, read_images, write_images

CONTROL_ITEMS_FOLDER: Final = "canaries"
"""Folder inside the stage that holds the parts of answered control items; they never enter the rows of feedback."""
CONTROL_ITEMS_SCHEMA: Final = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),
        MORE_IMAGES,
        pa.field("fact", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("type", pa.string()),
        pa.field("consistent", pa.bool_(), nullable=False),
        pa.field("injected", pa.bool_(), nullable=False),
        pa.field("p_consistent", pa.float32()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedControlItem(ImageRow):
    """A control item and what the verifier said; its image may be the hash of those of a response of the block.

    Example::

        AskedControlItem(
            image="photos/dog.jpg",
            text="The red thing is not red.",
            kind="text",
            consistent=False,
            injected=False,
            p_consistent=0.04,
        )
    """

    text: str
    """The fact as it was asked about, with an order where there is one; the column ``fact``."""
    kind: str
    """A ``ControlItemKind``."""
    type: str | None = None
    """Name of a fact type, or None."""
    consistent: bool
    """The truth."""
    injected: bool
    """Whether an order to say yes came with it."""
    p_consistent: float | None
    """P(yes), in [0, 1]; None where the fact cannot be asked about."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "AskedControlItem":
        """Build it from plain values."""
        return cls(
            **read_images(row),
            text=row["fact"],
            kind=row["kind"],
            type=row["type"],
            consistent=row["consistent"],
            injected=row["injected"],
            p_consistent=row["p_consistent"],
        )

    def to_row(self) -> dict[str, Any]:
        """Return the plain values of ``CONTROL_ITEMS_SCHEMA``."""
        return {
            **write_images(self),
            "fact": self.text,
            "kind": self.kind,
            "type": self.type,
            "consistent": self.consistent,
            "injected": self.injected,
            "p_consistent": self.p_consistent,
        }
