"""The parts of a pass through the policy's backbone, each a module of its own: images to features, ids and features to
the decoder's states, states to the log-probabilities of tokens.

Modules, because a sharded backbone (``fgaif_ray.vlm.sharding``) is put together where a module is called: whatever
reads its weights must happen inside, and equally often in every process.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fgaif_ray.vlm.backbone import Backbone
from fgaif_ray.vlm.entropy import entropy_from_logits

# Logits that are alive at once: with 32,000 tokens of vocabulary, float32 logits of 1,048 positions (134 MB).
LOGITS_PER_CHUNK: Final = 1 << 25


class ImagePass(nn.Module):
    """Images through vision tower and projector."""

    def __init__(self, backbone: Backbone) -> None:
        """Shares the backbone's modules."""
        super().__init__()
        self.backbone = backbone
        self.vision_tower: nn.Module = backbone.model.model.vision_tower
        self.projector: nn.Module = backbone.model.model.multi_modal_projector

    def forward(self, pixel_values: Tensor) -> Tensor:
        """``[images, image_tokens, hidden]``, without gradients; see ``Backbone.image_features``."""
        return self.backbone.image_features(pixel_values)


class DecoderPass(nn.Module):
    """Token embeddings with the image's features among them, through the decoder."""

    def __init__(self, backbone: Backbone) -> None:
        """Shares the backbone's modules."""
        super().__init__()
        self.backbone = backbone
        self.language_model = backbone.language_model

    def forward(self, input_ids: Tensor, image_features: Tensor) -> Tensor:
        """The last states, ``[rows, tokens, hidden]``.

        Args:
            input_ids: ``[rows, tokens]``.
            image_features: ``[rows, image_tokens, hidden]``.
        """
        embeddings = self.backbone.input_embeddings(input_ids, image_features)
        states: Tensor = self.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        return states


class VocabularyScores(nn.Module):
    """The vocabulary head, under the temperature of the sampling and without the tokens that it bans.

    Works on ``LOGITS_PER_CHUNK`` logits at a time and computes them again for the backward pass.
    """

    def __init__(self, backbone: Backbone, temperature: float) -> None:
        """Shares the backbone's head."""
        super().__init__()
        self.head: nn.Module = backbone.model.get_output_embeddings()
        self.temperature = temperature
        self._vocabulary = int(self.head.weight.shape[0])
        ids = backbone.front_end.banned_token_ids
        banned = torch.tensor(ids, dtype=torch.int64, device=backbone.device)
        self.register_buffer("_banned", banned, persistent=False)

    def forward(self, hidden: Tensor, targets: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of the targets and, where asked for, the entropies, both ``[positions]`` in nats.

        Args:
            hidden: ``[positions, hidden]`` states that the targets are chosen from.
            targets: ``[positions]`` ids.
            with_entropy: whether to compute the entropy of each whole distribution.
        """
        size = max(1, LOGITS_PER_CHUNK // self._vocabulary)
        parts = []
        for states, ids in zip(torch.split(hidden, size), torch.split(targets, size), strict=True):
            if len(hidden) > size and torch.is_grad_enabled():
                arguments = (states, ids, with_entropy)
                parts.append(checkpoint(self._chunk, *arguments, use_reentrant=False, preserve_rng_state=False))
            else:
                parts.append(self._chunk(states, ids, with_entropy))
        log_probs = torch.cat([part[0] for part in parts])
        return log_probs, torch.cat([part[1] for part in parts]) if with_entropy else None

    def _chunk(self, states: Tensor, ids: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
        logits = self.head(states).float() / self.temperature  # [chunk, vocabulary]
        logits = logits.index_fill(1, self._banned, float("-inf"))
        log_probs = -nn.functional.cross_entropy(logits, ids, reduction="none")  # [chunk]
        return log_probs, entropy_from_logits(logits) if with_entropy else None
