"""The shared parts of the adapters: images and questions from other formats, and scalars from dense rewards."""

import base64
import binascii
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Final, Literal

from PIL import Image

from fgaif_ray.serving.client import RewardClient, png_file, reward_item
from fgaif_ray.serving.wire import RewardItem, ScoredResponse

URL_VARIABLE: Final = "FGAIF_REWARD_URL"
"""Environment variable with the root of the service, for trainers that load a function from a file."""

IMAGE_PLACEHOLDER: Final = "<image>"
"""Placeholder of the image in a prompt's text; the service inserts the image itself."""

SHORTEST_BASE64: Final = 40
"""Fewest characters of base64: no image file is smaller, but the name of a missing file may look like base64."""

Reduction = Literal["mean", "sum"]
"""Reduction of the segments' rewards to one number. `mean` does not grow with the length of a response."""


def service_url(url: str | None) -> str:
    """Return the root of the service: as given, or from the environment.

    Raises:
        ValueError: it is in neither.
    """
    found = url or os.environ.get(URL_VARIABLE)
    if not found:
        raise ValueError(f"give url, or set {URL_VARIABLE} to the root of the reward service (http://host:port)")
    return found


_clients: dict[str, RewardClient] = {}
_clients_lock = Lock()


def shared_client(url: str) -> RewardClient:
    """Return the process's client of a service; the bearer token is that of the environment."""
    with _clients_lock:
        if url not in _clients:
            _clients[url] = RewardClient(url)
        return _clients[url]


def close_shared_clients() -> None:
    """Close the connections of all clients; the next request for a client makes a new one."""
    with _clients_lock:
        while _clients:
            _clients.popitem()[1].close()


def image_files(cell: Any) -> list[bytes]:
    """Read the image files that a dataset's cell stands for; see `image_file`.

    Args:
        cell: an image, or a list (or an array) of images.

    Raises:
        ValueError: there is none, or one is not an image.
    """
    several = not isinstance(cell, str | bytes | Mapping) and (isinstance(cell, Sequence) or hasattr(cell, "tolist"))
    images = cell if several else [cell]
    if len(images) == 0:
        raise ValueError("a response is scored against at least one image, not 0")
    return [image_file(image) for image in images]


def image_file(cell: Any) -> bytes:
    """Read the image file that a dataset's cell stands for; nothing is fetched from the network.

    Args:
        cell: a PIL image (becomes a PNG), an image file's bytes, its path (or `file://` URL), a data URL or base64; or
            a mapping with one of these under `bytes`, `path`, `image`, `url` or `image_url` (Hugging Face's image
            cells, chat content).

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(cell, Image.Image):
        return png_file(cell)
    if isinstance(cell, bytes):
        return cell
    if isinstance(cell, os.PathLike):
        return Path(cell).read_bytes()
    if isinstance(cell, str):
        return _file_of_text(cell)
    if isinstance(cell, Mapping):
        for key in ("bytes", "path", "image", "url", "image_url"):
            if cell.get(key) is not None:
                return image_file(cell[key])
    raise ValueError(f"no image: a PIL image, bytes, a path or a data URL is needed, not {type(cell).__name__}")


def _file_of_text(text: str) -> bytes:
    path = text.removeprefix("file://")
    if os.path.isfile(path):
        return Path(path).read_bytes()
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        if len(encoded) < SHORTEST_BASE64:
            raise ValueError("a name, not a file")
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        shown = text if len(text) <= 80 else f"{text[:80]}..."
        raise ValueError(f"no image file, data URL or base64: {shown!r} (URLs are not fetched)") from None


def question_text(prompt: Any, images: int = 1) -> str:
    """Return the question to the model: the prompt's text, or the text of the last user message of a chat.

    The placeholder of the only image is left out, and so are those of several where they are not as many: the service
    puts images first.

    Args:
        prompt: a text, or a chat.
        images: that the question is about.

    Raises:
        ValueError: there is no text.
    """
    if not isinstance(prompt, str):
        asked = [message for message in prompt if message["role"] == "user"]
        if not asked:
            raise ValueError("the prompt holds no message of the user")
        prompt = message_text(asked[-1], IMAGE_PLACEHOLDER)
    text = str(prompt)
    if images == 1 or text.count(IMAGE_PLACEHOLDER) != images:
        text = text.replace(IMAGE_PLACEHOLDER, "")
    return text.strip()


def answer_text(completion: Any) -> str:
    """Return the model's answer: a text, or the text of the last message of a chat."""
    return completion if isinstance(completion, str) else message_text(completion[-1])


def message_text(message: Mapping[str, Any], placeholder: str = "") -> str:
    """Return the text of a chat message, whose content is a text or a list of parts; images become the placeholder."""
    content = message["content"]
    if isinstance(content, str):
        return content
    texts = {"image": placeholder, "image_url": placeholder}
    return "".join(part["text"] if part["type"] == "text" else texts.get(part["type"], "") for part in content)


def chat_images(prompt: Any) -> Any:
    """Return the image parts of a chat, for `image_files`; None where the prompt is a text or holds no image."""
    if isinstance(prompt, str):
        return None
    contents = (message["content"] for message in prompt if not isinstance(message["content"], str))
    parts = [part for content in contents for part in content if part["type"] in ("image", "image_url")]
    filled = [part for part in parts if set(part) - {"type"}]
    return filled or None


def reference_item(reference: Any, response: str) -> RewardItem:
    """Build an item from a dataset's label, which holds image and question.

    Args:
        reference: `{"image": see image_files, "prompt": the question}`, or that as JSON text; `images` does as well.
        response: the model's answer.

    Raises:
        ValueError: the reference has another form.
    """
    fields = reference
    if isinstance(fields, str):
        try:
            fields = json.loads(fields)
        except ValueError:
            fields = None
    fields = fields if isinstance(fields, Mapping) else {}
    shown = fields.get("image") if fields.get("images") is None else fields["images"]
    if shown is None or fields.get("prompt") is None:
        raise ValueError('a reference must be {"image": path or data URL, "prompt": the question}, or that as JSON')
    return make_item(shown, fields["prompt"], response)


def make_item(image: Any, prompt: Any, response: str) -> RewardItem:
    """Build an item of a request; see `image_files` and `question_text`.

    Raises:
        ValueError: there is no image or no question.
    """
    files = image_files(image)
    return reward_item(files, question_text(prompt, len(files)), response)


def total_reward(scored: ScoredResponse, reduction: Reduction = "mean") -> float:
    """Reduce a response to the reward of all fact types, weighted as the service is configured.

    Returns:
        Mean or sum over the segments; 0.0 for a response without segments, which says nothing.
    """
    return scored.reward / (_divisor(scored) if reduction == "mean" else 1)


def type_reward(scored: ScoredResponse, fact_type: str, reduction: Reduction = "mean") -> float:
    """Reduce a response to P(consistent) - P(hallucinated) of one fact type, without any weight.

    Returns:
        Mean (in -1..1) or sum over the segments; 0.0 for a response without segments.
    """
    total = sum(triple[1] - triple[2] for triple in (one.probabilities[fact_type] for one in scored.segments))
    return float(total) / (_divisor(scored) if reduction == "mean" else 1)


def reward_metrics(
    scored: ScoredResponse, fact_types: Sequence[str], reduction: Reduction = "mean"
) -> dict[str, float]:
    """Return `type_reward` of each fact type of the service, and the number of segments."""
    rewards = {fact_type: type_reward(scored, fact_type, reduction) for fact_type in fact_types}
    return rewards | {"segments": float(len(scored.segments))}


def _divisor(scored: ScoredResponse) -> int:
    return max(len(scored.segments), 1)
