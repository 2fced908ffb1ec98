"""Packed training batches: one sequence holds one image and several conversations about it.

A block mask keeps the conversations apart and positions restart, so that each is exactly the single-turn conversation
the chat template makes, at a fraction of the cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from fgaif_ray.shapes.scenes import COLORS, GRID, SHAPES, SIZES
from fgaif_ray.shapes.turns import COLUMNS, ROWS, Turn

IGNORE: Final = -100
HEAVY_WEIGHT: Final = 4.0
"""Loss weight of the words that a packer is told to stress."""
ANSWERS: Final = ("Yes", "No")
SEEN: Final = (*ANSWERS, *(f" {word}" for word in (*SHAPES, *COLORS, *SIZES, *ROWS, *COLUMNS)))
"""The words that depend on the image."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One packed batch; B sequences of T tokens."""

    input_ids: Tensor  # [B, T]
    position_ids: Tensor  # [B, T]
    branches: Tensor  # [B, T], which conversation a token is of; 0 for the prefix they share, -1 for padding
    labels: Tensor  # [B, T], IGNORE where nothing is learnt; already shifted
    weights: Tensor  # [B, T], of the losses
    pixel_values: Tensor | None  # [B, 3, IMAGE_SIZE, IMAGE_SIZE]

    @property
    def attention_mask(self) -> Tensor:
        """The additive mask, ``[B, 1, T, T]``: a token sees the prefix and earlier tokens of its conversation."""
        length = self.branches.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.branches.device).tril()
        of_token, seen = self.branches[:, :, None], self.branches[:, None, :]
        visible = ((of_token == seen) | (seen == 0)) & causal  # [B, T, T]
        mask = torch.zeros(visible.shape, device=visible.device)
        return mask.masked_fill(~visible, torch.finfo(torch.float32).min)[:, None]

    def to(self, device: torch.device) -> "PackedBatch":
        """The batch on another device."""
        return PackedBatch(
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.branches.to(device),
            self.labels.to(device),
            self.weights.to(device),
            None if self.pixel_values is None else self.pixel_values.to(device),
        )


class Packer:
    """Turns conversations about an image into packed training batches; ``heavy`` words count HEAVY_WEIGHT times."""

    def __init__(self, processor: LlavaProcessor, with_image: bool = True, heavy: Sequence[str] = ANSWERS) -> None:
        self._processor, self._tokenizer, self.with_image = processor, processor.tokenizer, with_image
        marker = self._render("\x00")
        prefix, self._suffix = marker.split("\x00")
        if with_image:
            prefix = prefix.replace("<image>", "<image>" * GRID * GRID)
        self._prefix_ids: list[int] = self._tokenizer(prefix, add_special_tokens=False)["input_ids"]
        self._heavy_ids = torch.tensor([self.word_id(word) for word in heavy])
        image_processor = processor.image_processor
        self._mean = torch.tensor(image_processor.image_mean).view(1, 3, 1, 1)
        self._std = torch.tensor(image_processor.image_std).view(1, 3, 1, 1)

    def _render(self, question: str) -> str:
        content: list[dict[str, str]] = [{"type": "text", "text": question}]
        if self.with_image:
            content.insert(0, {"type": "image"})
        conversation: Any = [{"role": "user", "content": content}]  # transformers types it narrower than it takes
        text: str = self._processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        return text

    def word_id(self, word: str) -> int:
        """Return the token id of a word with its leading space; the first one if the tokenizer splits it."""
        ids: list[int] = self._tokenizer(word, add_special_tokens=False)["input_ids"]
        return ids[0]

    def pixels(self, images: np.ndarray) -> Tensor:
        """Normalised pixel values of uint8 images ``[B, height, width, 3]``."""
        values = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255.0
        return (values - self._mean) / self._std

    def pack(self, conversations: Sequence[Sequence[Turn]], images: np.ndarray | None) -> PackedBatch:
        """Pack the conversations of each image behind its prefix."""
        encode = self._tokenizer
        every = [turn for turns in conversations for turn in turns]
        texts = [text for turn in every for text in (turn.question + self._suffix, turn.answer, *turn.statements)]
        encoded = iter(encode(texts, add_special_tokens=False)["input_ids"])
        prefix = len(self._prefix_ids)
        rows: list[tuple[list[int], list[int], list[int], list[int]]] = []
        for turns in conversations:
            ids, positions, branches = list(self._prefix_ids), list(range(prefix)), [0] * prefix
            labels = [IGNORE] * prefix
            for branch, turn in enumerate(turns, start=1):
                asked, answered = next(encoded), next(encoded)
                if turn.statements:
                    pieces = [next(encoded) for _ in turn.statements]
                    told, learnt = _marked(asked, pieces, [self.word_id(word) for word in turn.answer.split()])
                else:
                    told = [*asked, *answered, encode.eos_token_id]
                    learnt = [*[IGNORE] * (len(asked) - 1), *answered, encode.eos_token_id, IGNORE]
                ids += told
                positions += range(prefix, prefix + len(told))
                branches += [branch] * len(told)
                labels += learnt
            rows.append((ids, positions, branches, labels))
        length = max(len(row[0]) for row in rows)

        def padded(column: int, value: int) -> Tensor:
            return torch.tensor([list(row[column]) + [value] * (length - len(row[column])) for row in rows])

        pixel_values = self.pixels(images) if images is not None else None
        labels_of_rows = padded(3, IGNORE)
        weights = torch.where(torch.isin(labels_of_rows, self._heavy_ids), HEAVY_WEIGHT, 1.0)
        return PackedBatch(
            padded(0, encode.pad_token_id), padded(1, 0), padded(2, -1), labels_of_rows, weights, pixel_values
        )


def _marked(asked: list[int], pieces: Sequence[list[int]], marks: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return ids and labels of a conversation in which a mark follows every given piece; only the marks are learnt."""
    ids, labels = list(asked), [IGNORE] * len(asked)
    for piece, mark in zip(pieces, marks, strict=True):
        ids += [*piece, mark]
        labels += [*[IGNORE] * (len(piece) - 1), mark, IGNORE]
    return ids, labels


def hidden_states(model: LlavaForConditionalGeneration, batch: PackedBatch) -> Tensor:
    """The decoder's last states of a packed batch, ``[B, T, hidden]``."""
    output: Any = model.model(
        input_ids=batch.input_ids,
        pixel_values=batch.pixel_values,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    )
    states: Tensor = output.last_hidden_state
    return states


def language_loss(model: LlavaForConditionalGeneration, batch: PackedBatch) -> Tensor:
    """Mean cross-entropy over the answer tokens of a packed batch (scalar).

    Yes or no is one token, and most tokens of a caption are phrasing, so the words that depend on the image weigh more.
    """
    hidden = hidden_states(model, batch)  # [B, T, hidden]
    learnt = batch.labels != IGNORE
    logits = model.lm_head(hidden[learnt])  # [answer tokens, vocabulary]
    losses = nn.functional.cross_entropy(logits, batch.labels[learnt], reduction="none")
    weights = batch.weights[learnt]
    return (losses * weights).sum() / weights.sum()
