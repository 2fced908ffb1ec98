"""OpenRLHF's remote-reward protocol: its `query` and `labels`, and its answer.

Light on purpose, like `wire`: the gateway and the adapter inside the trainer share it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fgaif_ray.errors import ItemError
from fgaif_ray.serving.wire import MAX_IMAGES, RemoteRewardResponse, ScoredResponse

CONTROL_MARKER: Final = r"<\|[^<>|\s]{1,64}\|>"
"""Special tokens as ChatML and its kin spell them (`<|im_end|>`, `<|image_pad|>`): a policy may have another tokenizer
than the service knows."""


def split_query(query: str, prompt: str, special_tokens: Sequence[str]) -> str:
    """Extract the response from OpenRLHF's `query`, which is the decoded prompt and response with all special tokens.

    Prompt and query may differ in special tokens (image tokens are expanded in one of them) and white space.

    Args:
        query: decoded ids of prompt and response.
        prompt: the prompt's text, chat template applied.
        special_tokens: of the policy's tokenizer; those that look like `<|name|>` need not be named.

    Raises:
        ItemError: `query_mismatch`: the query does not begin with the prompt.
    """
    named = sorted(map(re.escape, filter(None, special_tokens)), key=len, reverse=True)
    special = re.compile("|".join([*named, CONTROL_MARKER]))
    rest = special.sub("", query)
    position = 0
    for character in "".join(special.sub("", prompt).split()):
        while position < len(rest) and rest[position].isspace():
            position += 1
        if position == len(rest) or rest[position] != character:
            raise ItemError("query_mismatch", "query does not begin with its prompt")
        position += 1
    return rest[position:].strip()


def label_fields(label: Any) -> tuple[tuple[str, ...], str]:
    """Parse image fields and question of an OpenRLHF label.

    Raises:
        ItemError: `invalid_label`.
    """
    message = (
        'each label must be {"image": base64 or data URL, "prompt": the question}, with a list under "images" in place '
        'of "image" where there are several, or that as JSON text'
    )
    if isinstance(label, str):
        try:
            label = json.loads(label)
        except (ValueError, RecursionError) as error:
            raise ItemError("invalid_label", message) from error
    fields: dict[str, Any] = label if isinstance(label, dict) else {}
    images, question = fields.get("images", [fields.get("image")]), fields.get("prompt")
    if not (isinstance(images, list) and 0 < len(images) <= MAX_IMAGES and isinstance(question, str)):
        raise ItemError("invalid_label", message)
    if not all(isinstance(image, str) for image in images):
        raise ItemError("invalid_label", message)
    return tuple(images), question


def remote_answer(scored: Sequence[ScoredResponse], weights: Mapping[str, float]) -> RemoteRewardResponse:
    """Build the answer to OpenRLHF about responses.

    Args:
        scored: one per query.
        weights: of each fact type, as the service composes them; their sum scales `scores` to 0..1.
    """
    largest = sum(abs(weight) for weight in weights.values()) or 1.0
    counts = [max(len(response.segments), 1) for response in scored]
    means = [response.reward / count for response, count in zip(scored, counts, strict=True)]
    logs: dict[str, list[float]] = {"segments": [float(len(response.segments)) for response in scored]}
    for fact_type in weights:
        totals = [sum(segment.rewards[fact_type] for segment in response.segments) for response in scored]
        logs[f"reward_{fact_type}"] = [total / count for total, count in zip(totals, counts, strict=True)]
    return RemoteRewardResponse(
        rewards=[response.reward for response in scored],
        scores=[min(max(mean / largest / 2 + 0.5, 0.0), 1.0) for mean in means],
        extra_logs=logs,
    )
