"""How large a model is, counted from its ``config.json`` alone: no weight is read, nothing is downloaded.

The model is built by transformers on torch's meta device, where tensors have shapes and no content, so every parameter
is counted, whatever the architecture.
"""

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

ITEM_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2}
NF4_BYTES: Final = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight in 4 bits: half a byte, a byte for each block of 64, and a float32 for each 256 of those blocks (QLoRA,
Dettmers et al. 2023, section 3: double quantisation)."""


class UncountableModelError(Exception):
    """A model cannot be counted; the message is a phrase that says why, and what makes it countable."""


@dataclass(frozen=True, slots=True)
class Tower:
    """Sizes of a stack of transformer layers."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_width: int

    @property
    def queries(self) -> int:
        """Width of the queries of a token."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """Width of the keys of a token, and of its values."""
        return self.key_value_heads * self.head_width


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What a model holds."""

    name: str
    parameters: int
    buffer_bytes: int
    """Of what is no parameter; the same in any dtype."""
    dtype: str | None
    """The one that its configuration names."""
    decoder: Tower
    vocabulary: int
    positions: int
    """Tokens that the decoder was made for."""
    linear_layers: tuple[tuple[str, int, int], ...]
    """Name, inputs and outputs of each linear layer of the decoder, without the vocabulary head."""
    image_tokens: int
    """0 for a model without images."""
    vision: Tower | None
    patches: int
    """Tokens that the vision tower reads of an image."""

    def loaded_dtype(self, dtype: str) -> str:
        """What transformers loads weights as; ``auto`` is the configuration's own dtype."""
        return (self.dtype or "float32") if dtype == "auto" else dtype

    def engine_dtype(self, dtype: str) -> str:
        """What vLLM loads weights as; under ``auto`` it halves float32."""
        own = self.dtype if self.dtype in ("float16", "bfloat16") else "bfloat16"
        return own if dtype == "auto" else dtype

    def weight_bytes(self, dtype: str, quantisation: str = "none", shards: int = 1) -> int:
        """Of all weights in a dtype; under ``4bit`` the decoder's linear layers are in NF4.

        Cut up over several processes, what one of them holds: its shard of the parameters, and all buffers.
        """
        packed = self.linear_parameters if quantisation == "4bit" else 0
        plain = (self.parameters - packed) * ITEM_BYTES[dtype]
        return math.ceil(int(plain + packed * NF4_BYTES) / shards) + self.buffer_bytes

    @property
    def linear_parameters(self) -> int:
        """Weights of the decoder's linear layers."""
        return sum(inputs * outputs for _, inputs, outputs in self.linear_layers)

    def adapted_layers(self, targets: Sequence[str] | None = None) -> list[tuple[int, int]]:
        """Inputs and outputs of each linear layer that an adapter sits on; None stands for all."""
        return [
            (inputs, outputs)
            for name, inputs, outputs in self.linear_layers
            if targets is None or name.rpartition(".")[2] in targets
        ]

    def adapter_parameters(self, rank: int, targets: Sequence[str] | None = None) -> int:
        """Of a LoRA adapter: A is ``[rank, inputs]`` and B ``[outputs, rank]`` for each layer."""
        return sum(rank * (inputs + outputs) for inputs, outputs in self.adapted_layers(targets))

    def cache_bytes_per_token(self, dtype: str) -> int:
        """Keys and values of all layers."""
        return 2 * self.decoder.layers * self.decoder.keys * ITEM_BYTES[dtype]


@functools.lru_cache(maxsize=16)
def model_size(name: str) -> ModelSize:
    """Count a model.

    Args:
        name: checkpoint folder, or the name of a model; of either no more than ``config.json`` has to be on this
            machine.

    Raises:
        UncountableModelError: there is no configuration here, or it is of no architecture that transformers can build.
    """
    config = _read_config(name)
    try:
        with torch.device("meta"):
            model = _build(config)
        return _count(name, config, model)
    except (ValueError, AttributeError, KeyError, TypeError, RuntimeError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UncountableModelError(f"{name} cannot be built from its config.json: {reason}") from error


def _read_config(name: str) -> Any:
    try:
        return AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if os.path.isdir(name) or name.startswith((".", "/")):
            raise UncountableModelError(f"{name} holds no config.json that transformers can read") from error
        raise UncountableModelError(
            f"{name} is not on this machine; `hf download {name} config.json` is enough to count it"
        ) from error


def _build(config: Any) -> nn.Module:
    try:
        model: nn.Module = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    except ValueError:  # a model without images
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return model


def _count(name: str, config: Any, model: nn.Module) -> ModelSize:
    text = config.get_text_config()
    vision = getattr(config, "vision_config", None)
    side = vision.image_size // vision.patch_size if vision is not None and hasattr(vision, "image_size") else 0
    dtype = getattr(config, "dtype", None) or getattr(text, "dtype", None)
    inside = "language_model." if vision is not None else ""
    return ModelSize(
        name=name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        buffer_bytes=sum(buffer.numel() * buffer.element_size() for buffer in model.buffers()),
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        decoder=_tower(text),
        vocabulary=text.vocab_size,
        positions=text.max_position_embeddings,
        linear_layers=tuple(
            (path, module.in_features, module.out_features)
            for path, module in model.named_modules()
            if isinstance(module, nn.Linear) and inside in path and ".layers." in path
        ),
        image_tokens=(getattr(config, "image_seq_length", None) or side**2) if vision is not None else 0,
        vision=_tower(vision) if side else None,
        patches=side**2 + 1 if side else 0,  # with the class token
    )


def _tower(config: Any) -> Tower:
    heads = config.num_attention_heads
    return Tower(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=heads,
        key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )
