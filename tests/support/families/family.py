"""What the tests know of a family of vision-language models."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Draft:
    """A model with random weights and its processor, not yet written."""

    model: Any
    """``*ForConditionalGeneration`` of transformers."""
    processor: Any
    """With its tokenizer, image processor and chat template."""


@dataclass(frozen=True)
class Family:
    """How to build a tiny model of a family, and how its publisher lays out the files."""

    name: str
    model_type: str
    """As in ``config.json``."""
    draft: Callable[[], Draft]
    """Draws new weights from torch's global generator at each call."""
    eos_tokens: tuple[str, ...]
    """What ``generation_config.json`` names as ends of an answer."""
    weight_names: tuple[tuple[str, str], ...] = ()
    """Prefixes of parameter names in transformers 5, and what published checkpoints say instead; the first that fits
    is replaced."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """Sampling defaults that publishers write into ``generation_config.json``."""
    publish_config: Callable[[dict[str, Any]], dict[str, Any]] = dict
    """Turns ``config.json`` of transformers 5 into the published layout."""
    template_file: str | None = "chat_template.json"
    """Where the chat template is; None: the family has none."""
    processor_config: bool = True
    """False: published without ``processor_config.json``."""
    logit_scale: float = 1.0
    """Of the logits, where the family's decoder has one: transformers' class for images and text leaves it out."""
    linear_layers: tuple[str, ...] = (*("q_proj", "k_proj", "v_proj", "o_proj"), *("gate_proj", "up_proj", "down_proj"))
    """Names of the decoder's linear layers that an adapter is put on."""
    engine_lora: bool = True
    """False: vLLM takes no LoRA adapter for the architecture."""
    engine_agrees: bool = True
    """False: vLLM on a CPU computes other log-probabilities in float32 than transformers, or none; `notes` say why."""
    notes: str = ""
