"""What an answer is judged by: the images of a chat request, and what was last asked about them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fgaif_ray.errors import ItemError
from fgaif_ray.serving.wire import MAX_IMAGE_BYTES, MAX_IMAGES, MAX_PROMPT_CHARACTERS

PLACE: Final = "<image>"
"""In a prompt of the reward models, the place of an image."""
_DATA_URL: Final = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_BASE64_BYTES: Final = MAX_IMAGE_BYTES * 4 // 3 + 1024
"""Characters of the largest image that the reward service takes, with the head of its URL."""


@dataclass(frozen=True, slots=True)
class ImageQuestion:
    """The images of a conversation and its last question, as the reward models read them.

    Example: ``ImageQuestion(("data:image/png;base64,iVBOR...",), "What is in this image?")``
    """

    images: tuple[str, ...]
    """Data URLs, in the order of the conversation."""
    prompt: str
    """The text of the last user message; ``<image>`` is the place of an image, without places all come first."""
    cuttable: bool = True
    """Whether the answer is prose: one that has to follow a schema must not lose parts."""


def read_question(request: Mapping[str, Any]) -> ImageQuestion | None:
    """Read what an answer to a chat request is judged by.

    Earlier turns are not read, apart from their images: reward models judge one answer to one question.

    Args:
        request: body of ``POST /v1/chat/completions``; what is of another form than OpenAI's counts as not there.

    Returns:
        None where the conversation holds no image.

    Raises:
        ItemError: an image comes as a link, is too large, or there are too many; or the question is too long.
    """
    users = [message for message in _mappings(request.get("messages")) if message.get("role") == "user"]
    images: list[str] = []
    prompt = ""
    for message in users:
        before = len(images)
        pieces = list(_pieces(message.get("content")))
        images += [url for kind, url in pieces if kind == "image"]
        prompt = _prompt(pieces, leads=before == 0)
    if not images:
        return None
    _check(images, prompt)
    form = request.get("response_format")
    schema = isinstance(form, Mapping) and form.get("type") not in (None, "text")
    return ImageQuestion(tuple(images), prompt, cuttable=not schema)


def _mappings(value: object) -> Iterator[Mapping[str, Any]]:
    return (one for one in value if isinstance(one, Mapping)) if isinstance(value, list) else iter(())


def _pieces(content: object) -> Iterator[tuple[str, str]]:
    """Kind (``text``, ``image``) and content of the parts of a message."""
    if isinstance(content, str):
        yield "text", content
    for part in _mappings(content):
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            yield "text", part["text"]
        elif part.get("type") == "image_url":
            image = part.get("image_url")
            url = image.get("url") if isinstance(image, Mapping) else image
            if isinstance(url, str):
                yield "image", url


def _prompt(pieces: list[tuple[str, str]], *, leads: bool) -> str:
    """The text of a message; images get places where one stands behind a text, and no image is in an earlier message.

    Args:
        pieces: of the message.
        leads: whether its images are the first of the conversation.
    """
    kinds = [kind for kind, _ in pieces]
    placed = leads and "text" in kinds and "image" in kinds[kinds.index("text") :]
    parts = []
    for kind, content in pieces:
        if kind == "text":
            parts.append(content.replace(PLACE, "image"))  # a person's own words are no place
        elif placed:
            parts.append(PLACE)
    return "\n".join(parts)


def _check(images: list[str], prompt: str) -> None:
    if len(images) > MAX_IMAGES:
        raise ItemError("too_many_images", f"a conversation may have {MAX_IMAGES} images, not {len(images)}")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise ItemError("too_long", f"a question about images may have {MAX_PROMPT_CHARACTERS} characters")
    for number, url in enumerate(images, 1):
        if not _DATA_URL.match(url):
            raise ItemError(
                "image_not_inline", f"image {number} is not a data: URL; the guard opens no links: inline it"
            )
        if len(url) > _BASE64_BYTES:
            raise ItemError(
                "image_too_large", f"image {number} has more than {MAX_IMAGE_BYTES} bytes: send a smaller one"
            )
