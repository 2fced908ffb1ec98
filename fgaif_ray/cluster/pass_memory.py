"""Memory of forward and backward passes: formulas that follow what the code here keeps, in bytes.

Written for Llama-like decoder layers under `fgaif_ray.vlm.lora` and fused attention, as `PolicyModel` and
`RewardModel` run them. Per token of a layer (width H, intermediate width I, queries Q, keys K wide, an item of s bytes,
adapters of rank r on n layers, h heads), the backward pass needs

* 2 * (4 H + 4): the float32 copy that each of the two normalisations works on, and its scale;
* 2 H s: what they give to the adapters;
* (2 Q + 2 K) s + 4 h: queries, keys, values and output of the attention, and the logarithm of its normaliser;
* 4 I s: the gate before and after its activation, the other branch, and their product;
* n r s: the adapters' inner states;

and once per layer the adapters' weights in the dtype of the backbone, where that is not float32. With activation
checkpointing it is H s, and all of the above for one layer at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fgaif_ray.cluster.model_sizes import ITEM_BYTES, ModelSize, Tower

FLOAT32: Final = 4
LOGIT_COPIES: Final = 4
"""Float32 copies of a chunk's logits that are alive at once: scaled, masked, log-probabilities, and a gradient or the
terms of an entropy."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """Rank and targets of a LoRA adapter."""

    rank: int
    targets: Sequence[str]


def kept_states(model: ModelSize, adapter: Adapter, dtype: str, rows: int, tokens: int, checkpointing: bool) -> int:
    """What a forward pass through the decoder keeps for its backward pass.

    Args:
        model: with an adapter on its decoder.
        adapter: the one that is trained.
        dtype: of the backbone.
        rows: sequences of the pass.
        tokens: length of each, prompt, image tokens and padding included.
        checkpointing: whether each decoder layer keeps its input alone.
    """
    tower, item, count = model.decoder, ITEM_BYTES[dtype], rows * tokens
    copies = model.adapter_parameters(adapter.rank, adapter.targets) * item if item < FLOAT32 else 0
    last_norm = count * (FLOAT32 * tower.hidden + FLOAT32)
    whole = tower.layers * count * _per_token(model, adapter, item) + copies
    if not checkpointing:
        first_norm = count * (FLOAT32 * tower.hidden + FLOAT32)  # its input has no gradient, so it keeps nothing
        return whole - first_norm + last_norm
    return tower.layers * count * tower.hidden * item + whole // tower.layers + last_norm


def _per_token(model: ModelSize, adapter: Adapter, item: int) -> int:
    """Of one layer; see the module."""
    tower = model.decoder
    adapted = len(model.adapted_layers(adapter.targets)) // tower.layers
    norms = 2 * (FLOAT32 * tower.hidden + FLOAT32) + 2 * tower.hidden * item
    attention = (2 * tower.queries + 2 * tower.keys) * item + FLOAT32 * tower.heads
    return norms + attention + 4 * tower.intermediate * item + adapted * adapter.rank * item


def gathered_weights(model: ModelSize, dtype: str) -> int:
    """What a pass through a sharded backbone (``fgaif_ray.vlm.sharding``) has of it beside its part.

    A layer that computes, the message it came in, and that of the next; or vocabulary head or embeddings with theirs,
    and a layer's message.
    """
    item = ITEM_BYTES[dtype]
    layer = model.linear_parameters // model.decoder.layers * item
    return max(3 * layer, 2 * model.vocabulary * model.decoder.hidden * item + layer)


def working_states(tower: Tower, item: int, tokens: int) -> int:
    """What is alive at once inside one layer, in a pass without gradients or as the gradients of a backward pass: three
    tensors of the intermediate width and four of the layer's.

    Args:
        tower: decoder or vision tower.
        item: bytes of an element.
        tokens: of all rows together.
    """
    return tokens * (3 * tower.intermediate + 4 * tower.hidden) * item


def logit_chunk(model: ModelSize, responses: int) -> int:
    """Logits of the positions that the vocabulary head scores at once (see ``VocabularyScores``).

    Args:
        model: the policy.
        responses: response tokens of the pass.
    """
    from fgaif_ray.vlm.passes import LOGITS_PER_CHUNK

    positions = min(responses, max(1, LOGITS_PER_CHUNK // model.vocabulary))
    return LOGIT_COPIES * FLOAT32 * positions * model.vocabulary


def image_pass(model: ModelSize, dtype: str, images: int) -> int:
    """Images through the vision tower without gradients: transformers keeps the states of all layers until its end."""
    if model.vision is None:
        return 0
    item, tokens = ITEM_BYTES[dtype], images * model.patches
    states = (model.vision.layers + 1) * tokens * model.vision.hidden * item
    return states + working_states(model.vision, item, tokens)


def image_features(model: ModelSize, dtype: str, images: int) -> int:
    """Features of images after the projector."""
    return images * model.image_tokens * model.decoder.hidden * ITEM_BYTES[dtype]
