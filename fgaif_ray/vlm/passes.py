"""The parts of a pass through the policy's backbone, as modules.

They go from images to features, from ids and features to the decoder's states, and from states to the
log-probabilities of tokens. They are modules because a sharded backbone (``fgaif_ray.vlm.sharding``) is gathered where
a module is called: whatever reads its weights must happen inside, and equally often in every process.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fgaif_ray.vlm.backbone import Backbone
from fgaif_ray.vlm.entropy import entropy_from_logits
from fgaif_ray.vlm.image_features import ImageFeatures
from fgaif_ray.vlm.inputs import EncodedPrompt, RowInputs

# Logits in memory at once: with 32,000 tokens of vocabulary, float32 logits of 1,048 positions (134 MB).
LOGITS_PER_CHUNK: Final = 1 << 25


class ImagePass(nn.Module):
    """Images through all that makes their features."""

    def __init__(self, backbone: Backbone) -> None:
        """Share the backbone's modules."""
        super().__init__()
        self.backbone = backbone
        children = backbone.multimodal.children()
        self.parts = nn.ModuleList(part for part in children if backbone.decoder not in set(part.modules()))

    def forward(self, prompts: Sequence[EncodedPrompt]) -> list[ImageFeatures]:
        """Return the features of the images of each prompt, see ``Backbone.features_of_batch``."""
        return self.backbone.features_of_batch(prompts)


class DecoderPass(nn.Module):
    """Token ids with the images' features, through the decoder."""

    def __init__(self, backbone: Backbone) -> None:
        """Share the backbone's modules."""
        super().__init__()
        self.backbone = backbone
        self.decoder = backbone.decoder

    def forward(self, rows: RowInputs, features: Sequence[ImageFeatures]) -> Tensor:
        """Return the last states, ``[rows, tokens, hidden]``, see ``Backbone.states``."""
        return self.backbone.states(rows, features)


class VocabularyScores(nn.Module):
    """The vocabulary head, with the temperature of the sampling and without banned tokens.

    It works on ``LOGITS_PER_CHUNK`` logits at a time and computes them again for the backward pass.
    """

    def __init__(
        self,
        head: nn.Module,
        banned_token_ids: Sequence[int],
        temperature: float,
        soft_cap: float | None = None,
        scale: float = 1.0,
    ) -> None:
        """Share a model's vocabulary head.

        Args:
            head: hidden states to logits, with a ``weight`` of ``[vocabulary, hidden]``.
            banned_token_ids: tokens that are never sampled.
            temperature: of the sampling.
            soft_cap: bounds logits by its hyperbolic tangent (Gemma 2, section 2), where the family does.
            scale: what logits are multiplied by, see ``logit_scale``.
        """
        super().__init__()
        self.head = head
        self.temperature = temperature
        self.soft_cap = soft_cap
        self.scale = scale
        weight: Tensor = self.head.get_parameter("weight")
        self._vocabulary = int(weight.shape[0])
        banned = torch.tensor(list(banned_token_ids), dtype=torch.int64, device=weight.device)
        self.register_buffer("_banned", banned, persistent=False)

    def forward(self, hidden: Tensor, targets: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
        """Return the log-probabilities of the targets and, on request, the entropies, both ``[positions]`` in nats.

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
        logits = self.head(states).float()  # [chunk, vocabulary]
        if self.soft_cap is not None:
            logits = torch.tanh(logits / self.soft_cap) * self.soft_cap
        logits = (logits * (self.scale / self.temperature)).index_fill(1, self._banned, float("-inf"))
        log_probs = -nn.functional.cross_entropy(logits, ids, reduction="none")  # [chunk]
        return log_probs, entropy_from_logits(logits) if with_entropy else None


def logit_scale(config: Any) -> float:
    """What the decoder of a configuration multiplies its logits by, as Cohere's and Granite's do; else 1.

    Engines do so. transformers' classes for images and text leave it out, where it would not change greedy answers.
    """
    text = config.get_text_config()
    return float(getattr(text, "logit_scale", None) or 1.0) / float(getattr(text, "logits_scaling", None) or 1.0)
