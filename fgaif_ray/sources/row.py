"""One row of image, prompt and response, from any kind of file."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from fgaif_ray import storage
from fgaif_ray.config import ColumnNames
from fgaif_ray.errors import UserError

IMAGE_TOKEN: Final = "<image>"
"""Placeholder of the image in the prompts of LLaVA's own files."""
PROVIDED_SCHEMA: Final = pa.schema([(name, pa.string()) for name in ("image", "prompt", "response")])


@dataclass(frozen=True, slots=True)
class Row:
    """An image, a prompt about it, and the response if one is provided.

    Example: ``Row("photos/cat.jpg", "What is this?", None)``
    """

    image: str | bytes
    """Path or URI, or the bytes of an image file."""
    prompt: str | None
    """None where the source has no prompts."""
    response: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvidedResponse:
    """A response that came with the data.

    Example: ``ProvidedResponse(image="photos/cat.jpg", prompt="What is this?", text="A cat.")``
    """

    image: str
    """Path or URI."""
    prompt: str
    text: str
    """The column ``response``."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "ProvidedResponse":
        """Build it from plain values."""
        return cls(image=row["image"], prompt=row["prompt"], text=row["response"])

    def to_row(self) -> dict[str, str]:
        """Return the plain values of ``PROVIDED_SCHEMA``."""
        return {"image": self.image, "prompt": self.prompt, "response": self.text}


@dataclass(frozen=True, slots=True)
class RowSource:
    """Rows that can be read again and again, one after the other."""

    name: str
    """Its name in messages."""
    key: str
    """A key that changes when the rows may have changed."""
    embedded: bool
    """Whether rows may hold images themselves."""
    read: Callable[[], Iterator[Row]]
    """Read from the start; raises UserError at a row that cannot be used."""


def parse_row(values: Mapping[str, Any], columns: ColumnNames, folder: str, where: str) -> Row:
    """Build a row from the configured columns.

    Args:
        values: by column name; those of ``columns.image`` and ``columns.prompt`` must be there.
        columns: names of the columns.
        folder: what relative image paths are relative to.
        where: the place of the row, for messages, e.g. ``"rows.jsonl, line 3"``.

    Raises:
        UserError: a value is missing, of another type, or cannot be used.
    """
    prompt = response = None
    if columns.prompt is not None:
        prompt = _text(values, columns.prompt, where)
        if prompt is None:
            raise UserError(
                f"{where}: there is no prompt in {columns.prompt!r}; add one, or set data.columns.prompt to the column "
                "that holds it (null asks data.prompts)."
            )
        if IMAGE_TOKEN in prompt:
            raise UserError(
                f"{where}: the prompt holds {IMAGE_TOKEN}, which stands for the image; take it out, the image is put "
                "before every prompt."
            )
    if columns.response is not None:
        response = _text(values, columns.response, where)
        if response is not None and prompt is None:
            raise UserError(
                f"{where}: there is a response but no prompt that it answers; set data.columns.prompt, or "
                "data.columns.response to null to sample this row."
            )
    return Row(_image(values.get(columns.image), columns.image, folder, where), prompt, response)


def _text(values: Mapping[str, Any], column: str, where: str) -> str | None:
    """Return a text; None where there is none, or only white space."""
    text = values.get(column)
    if text is None:
        return None
    if not isinstance(text, str):
        raise UserError(f"{where}: {column!r} is not text but {type(text).__name__}; give a text.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {column!r} holds half a surrogate pair, which is not text; repair it.") from error
    return text if text.strip() else None


def _image(value: Any, column: str, folder: str, where: str) -> str | bytes:
    if isinstance(value, Mapping):  # Hugging Face's image columns
        value = value.get("bytes") or value.get("path")
    if not value:
        raise UserError(f"{where}: there is no image in {column!r}; leave the row out, or set data.columns.image.")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise UserError(
            f"{where}: {column!r} is not an image but {type(value).__name__}; give a path, a URI or a file's bytes."
        )
    return storage.resolve_path(value, folder)
