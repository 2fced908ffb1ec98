"""Prompts: plain text, or a conversation whose last message is the user's.

A prompt is carried as one string everywhere. It is either plain text, or the canonical JSON of chat messages: a compact
JSON array of objects with ``role`` and ``content``. ``<image>`` in either is the place of an image.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

IMAGE_MARKER: Final = "<image>"
"""The place of an image in a text."""
ROLES: Final = ("system", "user", "assistant")
_IMAGE_TYPES: Final = frozenset({"image", "image_url", "input_image"})
_TEXT_TYPES: Final = ("text", "input_text", None)
_MARKER: Final = re.compile(rf"(?:\r?\n[ \t]*)?{IMAGE_MARKER}(?:[ \t]*\r?\n)?")
"""A marker with the line breaks that set it apart from the text: templates set their own."""


class ImagePlacesError(ValueError):
    """The number of places for images in a prompt is not the number of its images."""


Part = dict[str, str]
"""``{"type": "image"}`` or ``{"type": "text", "text": ...}``."""


def messages_of(prompt: str, images: int = 1) -> list[dict[str, Any]]:
    """Return the chat messages of a prompt as transformers' chat templates take them.

    A prompt without a place for an image has all images first, before the text of the first message of the user.

    Args:
        prompt: plain text, which is one message of the user, or the JSON of chat messages.
        images: the images that are shown with it.

    Returns:
        ``{"role": ..., "content": [...]}`` with the content in parts: ``{"type": "image"}`` for each image, and
        ``{"type": "text", "text": ...}``.

    Raises:
        ImagePlacesError: the prompt has another number of places than images.
        ValueError: it is not a conversation that can be answered.
    """
    messages = _messages_in(prompt)
    places = sum(_places(message) for message in messages)
    if places == 0:
        first = next(message for message in messages if message["role"] == "user")
        texts = [part for part in first["content"] if part["text"] or not images]
        first["content"] = [{"type": "image"} for _ in range(images)] + texts
    elif places != images:
        raise ImagePlacesError(
            f"the prompt has {_counted(places, 'place')} for an image ({IMAGE_MARKER}) but is asked with "
            f"{_counted(images, 'image')}: give as many places as images, or none"
        )
    return messages


def count_places(prompt: str) -> int:
    """Count the places for images in a prompt.

    Raises:
        ValueError: it is not a conversation that can be answered.
    """
    return sum(map(_places, _messages_in(prompt)))


def canonical_prompt(messages: Any) -> str:
    """Return the one string that stands for chat messages in a prompt.

    Args:
        messages: a list of ``{"role", "content"}``; a content is a text or a list of parts. Lists of one element are
            taken for the element, as data sets of verl and TRL have them.

    Returns:
        The text where there is one message, of the user, with nothing but text after the images; else canonical JSON.

    Raises:
        ValueError: it is not a conversation that can be answered; the message says why.
    """
    checked = _messages(messages)
    text = _plain_text(checked)
    return text if text is not None else json.dumps(checked, ensure_ascii=False, separators=(",", ":"))


def shown_prompt(prompt: str) -> str:
    """Return a prompt as people read it: its text, or a line for each message, the system's first.

    Images without a place of their own are not shown.
    """
    chat = parse_chat(prompt)
    if chat is None:
        return prompt
    try:
        messages = _messages(chat)
    except ValueError:
        return prompt
    shown = [(message["role"], " ".join(map(_shown_part, message["content"])).strip()) for message in messages]
    if len(shown) == 1:
        return shown[0][1]
    shown.sort(key=lambda entry: entry[0] != "system")
    return "\n".join(f"{role}: {text}" for role, text in shown)


def split_response(messages: list[Any]) -> tuple[list[Any], str | None]:
    """Take the answer off a conversation that ends with one.

    Args:
        messages: chat messages as data sets have them, unchecked (see ``is_chat``).

    Returns:
        The messages before it, and its text; all messages and None where the last is not the assistant's.

    Raises:
        ValueError: the answer is not text.
    """
    last = messages[-1]
    if last["role"] != "assistant":
        return messages, None
    content = last["content"]
    parts = content if isinstance(content, list) else [content]
    said = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    texts = [text for text in said if isinstance(text, str)]
    if len(texts) < len(said):
        raise ValueError("the last message, which is the assistant's, is not text")
    return messages[:-1], "".join(texts)


def parse_chat(prompt: str) -> list[Any] | None:
    """Return the messages of a prompt in JSON, unchecked; None where the prompt is plain text."""
    if not prompt.lstrip().startswith("["):
        return None
    try:
        found = json.loads(prompt)
    except (ValueError, RecursionError):
        return None
    return found if is_chat(found) else None


def is_chat(value: Any) -> bool:
    """Whether a value is a list of messages, each with ``role`` and ``content``."""
    return isinstance(value, list) and bool(value) and all(_is_message(message) for message in value)


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and "role" in value and "content" in value


def _messages(given: Any) -> list[dict[str, Any]]:
    """Check messages, and bring their contents into parts.

    Raises:
        ValueError: they are not a conversation that can be answered.
    """
    while isinstance(given, list) and len(given) == 1 and isinstance(given[0], list):
        given = given[0]
    if given == []:
        raise ValueError("it has no message of the user")
    if not is_chat(given):
        raise ValueError("it is not a list of chat messages, each with a role and a content")
    messages = [_message(message, number) for number, message in enumerate(given, start=1)]
    last = messages[-1]
    if last["role"] != "user":
        raise ValueError(f"the last message is the {last['role']}'s: a prompt ends with a message of the user")
    if not any(part["type"] == "image" or part["text"].strip() for part in last["content"]):
        raise ValueError("the last message is empty: a prompt ends with something to answer")
    return messages


def _messages_in(prompt: str) -> list[dict[str, Any]]:
    chat = parse_chat(prompt)
    return _messages(chat) if chat is not None else [_message({"role": "user", "content": prompt}, 1)]


def _message(message: Mapping[str, Any], number: int) -> dict[str, Any]:
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise ValueError(f"message {number} is of the role {role!r}: roles are {', '.join(ROLES)}")
    if isinstance(content, str):
        parts = _split(content)
    elif isinstance(content, Sequence) and not isinstance(content, bytes):
        parts = [part for given in content for part in _parts(given, number)]
    else:
        raise ValueError(f"the content of message {number} is neither text nor a list of parts")
    return {"role": role, "content": parts or [{"type": "text", "text": ""}]}


def _parts(given: Any, number: int) -> Iterable[Part]:
    """The parts that a part of a content holds; in rows of tables it has all keys, those of other types without values.

    Raises:
        ValueError: it is neither text nor an image.
    """
    if isinstance(given, str):
        return _split(given)
    if isinstance(given, Mapping):
        kind = given.get("type")
        if kind in _IMAGE_TYPES or (kind is None and any(given.get(name) is not None for name in _IMAGE_TYPES)):
            return [{"type": "image"}]
        if kind in _TEXT_TYPES and isinstance(given.get("text"), str):
            return _split(given["text"])
        if kind not in _TEXT_TYPES:
            raise ValueError(f"message {number} has a part of type {kind!r}: parts are text and images")
    raise ValueError(f"message {number} has a part that is neither text nor an image")


def _split(text: str) -> list[Part]:
    """Cut a text at its image markers."""
    pieces = _MARKER.split(text)
    parts: list[Part] = []
    for index, piece in enumerate(pieces):
        if index:
            parts.append({"type": "image"})
        if piece.strip() or (piece and len(pieces) == 1):
            parts.append({"type": "text", "text": piece})
    return parts


def _plain_text(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the text that stands for messages; None where JSON has to."""
    if len(messages) != 1:
        return None
    *images, last = messages[0]["content"]
    if last["type"] != "text" or any(part["type"] != "image" for part in images):
        return None
    text: str = last["text"]
    return text if parse_chat(text) is None else None


def _places(message: Mapping[str, Any]) -> int:
    return sum(part["type"] == "image" for part in message["content"])


def _shown_part(part: Part) -> str:
    return IMAGE_MARKER if part["type"] == "image" else part["text"].strip()


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
