"""What transformers alone makes of a prompt, its images and a response: the truth that our code is compared with."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor


def ask(prompt: str) -> list[dict[str, Any]]:
    """Messages of one user turn: an image, then the prompt."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]


def reference_inputs(folder: Path, messages: Sequence[dict[str, Any]], images: Sequence[Image]) -> dict[str, Tensor]:
    """What the processor makes of a prompt.

    Args:
        messages: turns whose content is a list of parts, e.g. ``ask("What is this?")``.
        images: one for each part ``{"type": "image"}``, in order.

    Returns:
        Inputs of the model for one prompt with an open answer: ``input_ids`` ``[1, prompt_tokens]`` and all else.
    """
    filled = deepcopy(list(messages))
    parts = [part for message in filled for part in message["content"] if part["type"] == "image"]
    for part, image in zip(parts, images, strict=True):
        part["image"] = image
    processor = AutoProcessor.from_pretrained(folder)
    return dict(
        processor.apply_chat_template(
            filled, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    )


@torch.no_grad()
def reference_log_probs(
    folder: Path,
    messages: Sequence[dict[str, Any]],
    images: Sequence[Image],
    response_ids: Sequence[int],
    banned: Sequence[int] = (),
    logit_scale: float = 1.0,
) -> Tensor:
    """Log-probabilities of a response's tokens by one forward pass in float32, ``[response_tokens]``.

    The checkpoint is loaded again at each call.

    Args:
        messages: see `reference_inputs`; `images` likewise.
        response_ids: the response, its EOS token included where it has one.
        banned: ids that cannot be sampled.
        logit_scale: what transformers' logits are multiplied by first.
    """
    inputs = reference_inputs(folder, messages, images)
    length = inputs["input_ids"].shape[1]
    response = torch.tensor([list(response_ids)])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], response], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    for name in ("token_type_ids", "mm_token_type_ids"):  # a response is text: type 0
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.zeros_like(response)], dim=1)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    logits: Tensor = logit_scale * model(**inputs, use_cache=False).logits[0, length - 1 : -1]
    logits[:, list(banned)] = float("-inf")
    return logits.log_softmax(dim=-1).gather(1, response[0, :, None])[:, 0]
