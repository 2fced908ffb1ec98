"""What is checked: a text about images that this user can read, and who checks it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fgaif_ray import storage
from fgaif_ray.errors import ItemError, UserError
from fgaif_ray.images import IMAGE_FORMATS, pixels_to_decode, read_data_url, read_image_file
from fgaif_ray.pixel_budget import UNLIMITED
from fgaif_ray.rewards.preparation import check_text
from fgaif_ray.serving.wire import (
    DEFAULT_PROMPT,
    MAX_IMAGES,
    MAX_PROMPT_CHARACTERS,
    MAX_RESPONSE_CHARACTERS,
    CheckedResponse,
)

CheckResult = CheckedResponse | ItemError
"""The check of one text, or why there is none."""


@dataclass(frozen=True, slots=True)
class TextToCheck:
    """A text about images."""

    images: tuple[bytes, ...]
    """Image files."""
    response: str
    prompt: str = DEFAULT_PROMPT


class Checker(Protocol):
    """Reward models in this process, or those of a service."""

    def check_each(self, texts: Sequence[TextToCheck]) -> list[CheckResult]:
        """Check texts, in order; one that cannot be checked affects no other.

        Raises:
            UserError: nothing can be checked.
        """
        ...


def read_text(images: Sequence[str], response: str, prompt: str, folder: str = ".") -> TextToCheck:
    """Read the images of a text.

    Args:
        images: paths, URIs or data URLs.
        response: the text.
        prompt: what it answers.
        folder: what paths are relative to.

    Raises:
        ItemError: an image cannot be read or is none, or a text is too long or holds half of a character.
    """
    check_text("response", response, MAX_RESPONSE_CHARACTERS)
    check_text("prompt", prompt, MAX_PROMPT_CHARACTERS)
    if not 1 <= len(images) <= MAX_IMAGES:
        raise ItemError("invalid_row", f"a text is about 1 to {MAX_IMAGES} images, not {len(images)}")
    return TextToCheck(tuple(_file_of(image, folder) for image in images), response, prompt)


def text_of_row(row: Any, folder: str) -> TextToCheck:
    """Read a row of a batch.

    Args:
        row: ``{"image": path, URI or data URL, "prompt": str, "response": str}``, with a list under ``images`` in place
            of ``image`` where there are several; the prompt may be missing.
        folder: what paths are relative to.

    Raises:
        ItemError: see ``read_text``; or a field is missing or of another kind.
    """
    if not isinstance(row, Mapping):
        raise ItemError("invalid_row", 'a row is an object: {"image": ..., "response": ...}')
    if ("image" in row) == ("images" in row):
        raise ItemError("invalid_row", "give either image or images")
    images = row["images"] if "images" in row else [row["image"]]
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise ItemError("invalid_row", "image is a path or a data URL, images a list of them")
    response, prompt = row.get("response"), row.get("prompt", DEFAULT_PROMPT)
    if not isinstance(response, str) or not isinstance(prompt, str):
        raise ItemError("invalid_row", "give a response, and where there is a prompt both as text")
    return read_text(images, response, prompt, folder)


def _file_of(image: str, folder: str) -> bytes:
    """The image file; what is none is not handed on, since it may go to another machine."""
    is_data = image[:5].lower() == "data:"
    shown = "the data URL" if is_data else image
    try:
        data = read_data_url(image) if is_data else read_image_file(storage.resolve_path(image, folder))
        pixels_to_decode(data, UNLIMITED, IMAGE_FORMATS)
    except OSError as error:
        raise ItemError("invalid_image", f"cannot read the image {shown}: {error.strerror or error}") from error
    except (ValueError, UserError) as error:
        raise ItemError("invalid_image", f"{shown} is not a usable image: {error}") from error
    return data
