"""A response as the backbone of reward models reads it: images, prompt, and segments that are closed by separators."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from fgaif_ray.vlm.inputs import EncodedPrompt

if TYPE_CHECKING:  # brings transformers' models, which the service's gateway does without
    from fgaif_ray.vlm.backbone import Backbone


@dataclass(frozen=True)
class ScoringItem:
    """One response to be scored.

    Example: ``ScoringItem([image], "Describe this image.", ["A cat sits on a mat, ", "next to a red ball."])``
    """

    images: Sequence[Image.Image]
    """What it is about, in the order of their places in the prompt."""
    prompt: str
    segments: Sequence[str]
    """Segments in order; white space around them makes no difference."""


@dataclass(frozen=True)
class EncodedItem:
    """What the backbone reads of one response."""

    prompt: EncodedPrompt
    text_ids: list[int]
    """``[text_tokens]`` of the segments and their separators, after the prompt."""
    separators: list[int]
    """``[segments]`` positions, counted from the prompt's first token, where the classes are read."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.text_ids)


def encode_item(backbone: "Backbone", item: ScoringItem, longest: int | None = None) -> EncodedItem:
    """Tokenise ``prompt, sub_1 </s> sub_2 </s> ...``.

    The segments are tokenised as one text and cut after the token that holds the last character of each,
    so that words get the ids they have in running text. Special tokens spelled out in a response are text
    here, not tokens.

    Raises:
        ValueError: the prompt holds a special token, or another number of places than there are images; it all takes
            more than ``longest`` tokens, where that is given. The text is looked at first, which takes little beside
            images.
    """
    texts = [segment.strip() for segment in item.segments]
    encoded = backbone.front_end.tokenizer(
        " ".join(texts), add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True
    )
    tokens = list(zip(encoded["input_ids"], (end for _, end in encoded["offset_mapping"]), strict=True))
    _check_length(len(tokens) + len(texts), longest)
    prompt = backbone.front_end.encode_prompt(item.prompt, item.images)
    text_ids: list[int] = []
    separators = []
    position = 0
    segment_end = -1
    for text in texts:
        segment_end += 1 + len(text)
        while position < len(tokens) and tokens[position][1] <= segment_end:
            text_ids.append(tokens[position][0])
            position += 1
        separators.append(len(prompt) + len(text_ids))
        text_ids.append(backbone.eos_token_id)
    _check_length(len(prompt) + len(text_ids), longest)
    return EncodedItem(prompt, text_ids, separators)


def _check_length(tokens: int, longest: int | None) -> None:
    if longest is not None and tokens > longest:
        raise ValueError(f"a response takes {tokens} tokens, but the backbone reads {longest}")
