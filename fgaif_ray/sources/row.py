"""One row of image, prompt and response, from any kind of file."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from fgaif_ray.config import ColumnNames
from fgaif_ray.errors import UserError
from fgaif_ray.images import read_data_url
from fgaif_ray.prompts import ImagePlacesError, canonical_prompt, is_chat, messages_of, parse_chat, split_response
from fgaif_ray.records import MORE_IMAGES, ImageRow, read_images, write_images

OTHER_NAMES: Final = {"image": "images", "prompt": "messages"}
"""Columns that data sets of TRL and verl have in place of those of the default names."""
PROVIDED_SCHEMA: Final = pa.schema(
    [pa.field("image", pa.string()), MORE_IMAGES, pa.field("prompt", pa.string()), pa.field("response", pa.string())]
)
_DATA_URL: Final = "data:"

ResolveImage = Callable[[str], str]
"""Makes the path or URI of an image of what a row names; raises ValueError where the row may not name it."""


@dataclass(frozen=True, slots=True)
class Row:
    """Images, a prompt about them, and the response if one is provided.

    Example: ``Row(("photos/cat.jpg",), "What is this?", None)``
    """

    images: tuple[str | bytes, ...]
    """Path or URI of each, or the bytes of an image file; at least one."""
    prompt: str | None
    """Plain text or chat messages (``fgaif_ray.prompts``); None where the source has no prompts. It may have another
    number of places for images than there are: whoever asks it rejects the row then."""
    response: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvidedResponse(ImageRow):
    """A response that came with the data.

    Example: ``ProvidedResponse(image="photos/cat.jpg", prompt="What is this?", text="A cat.")``
    """

    prompt: str
    text: str
    """The column ``response``."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "ProvidedResponse":
        """Build it from plain values."""
        return cls(**read_images(row), prompt=row["prompt"], text=row["response"])

    def to_row(self) -> dict[str, Any]:
        """Return the plain values of ``PROVIDED_SCHEMA``."""
        return write_images(self) | {"prompt": self.prompt, "response": self.text}


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


def columns_in(present: Collection[str], columns: ColumnNames) -> ColumnNames:
    """Return the columns to read: a missing one of the default name may have another (``OTHER_NAMES``)."""
    default = ColumnNames()
    found = {
        role: other
        for role, other in OTHER_NAMES.items()
        if getattr(columns, role) == getattr(default, role) and role not in present and other in present
    }
    return columns.model_copy(update=found)


def parse_row(values: Mapping[str, Any], columns: ColumnNames, resolve: ResolveImage, where: str) -> Row:
    """Build a row from the configured columns.

    Args:
        values: by column name; those of ``columns.image`` and ``columns.prompt`` must be there.
        columns: names of the columns.
        resolve: makes paths of what the row names as images.
        where: the place of the row, for messages, e.g. ``"rows.jsonl, line 3"``.

    Raises:
        UserError: a value is missing, of another type, or cannot be used.
    """
    images = _images(values.get(columns.image), columns.image, resolve, where)
    prompt = response = None
    if columns.prompt is not None:
        prompt, response = _prompt(values.get(columns.prompt), len(images), columns.prompt, where)
        if prompt is None:
            raise UserError(
                f"{where}: there is no prompt in {columns.prompt!r}; add one, or set data.columns.prompt to the column "
                "that holds it (null asks data.prompts)."
            )
    if columns.response is None:
        return Row(images, prompt, None)
    given = _response(values.get(columns.response), columns.response, where)
    if given is not None and prompt is None:
        raise UserError(
            f"{where}: there is a response but no prompt that it answers; set data.columns.prompt, or "
            "data.columns.response to null to sample this row."
        )
    if given is not None and response is not None:
        raise UserError(
            f"{where}: there is a response in {columns.response!r} and one at the end of {columns.prompt!r}; take one "
            "of them out."
        )
    return Row(images, prompt, response if given is None else given)


def _prompt(value: Any, images: int, column: str, where: str) -> tuple[str | None, str | None]:
    """Return a prompt, and the response that chat messages end with; None where there is none."""
    while isinstance(value, list) and len(value) == 1 and not is_chat(value):
        value = value[0]
    chat = parse_chat(value) if isinstance(value, str) else value if is_chat(value) else None
    try:
        if chat is not None:
            chat, response = split_response(chat)
            text = canonical_prompt(chat)
        else:
            found, response = _text(value, column, where), None
            if found is None:
                return None, None
            text = found
        prompt = canonical_prompt(messages_of(text, images))
    except ImagePlacesError:
        prompt = text
    except ValueError as error:
        raise UserError(f"{where}: {column!r} cannot be asked: {error}.") from error
    return _text(prompt, column, where), _text(response, column, where)


def _response(value: Any, column: str, where: str) -> str | None:
    """Return a response: a text, or the one message of the assistant."""
    if is_chat(value) and len(value) == 1 and value[0]["role"] == "assistant":
        try:
            _, value = split_response(value)
        except ValueError as error:
            raise UserError(f"{where}: {column!r} cannot be used: {error}.") from error
    return _text(value, column, where)


def _text(text: Any, column: str, where: str) -> str | None:
    """Return a text; None where there is none, or only white space."""
    if text is None:
        return None
    if not isinstance(text, str):
        raise UserError(f"{where}: {column!r} is not text but {type(text).__name__}; give a text.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {column!r} holds half a surrogate pair, which is not text; repair it.") from error
    return text if text.strip() else None


def _images(value: Any, column: str, resolve: ResolveImage, where: str) -> tuple[str | bytes, ...]:
    """Return the images of a row, which may be one or a list of them.

    Raises:
        UserError: there is none, or one of them cannot be used.
    """
    listed = (value or [None]) if isinstance(value, list) else [value]
    return tuple(_image(one, column, resolve, where) for one in listed)


def _image(value: Any, column: str, resolve: ResolveImage, where: str) -> str | bytes:
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
    try:
        return read_data_url(value) if value[: len(_DATA_URL)].lower() == _DATA_URL else resolve(value)
    except ValueError as error:
        raise UserError(f"{where}: {column!r} cannot be used: {error}.") from error
