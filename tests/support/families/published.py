"""Writes a model and its processor as the files of a published checkpoint."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig

from support.families.family import Draft, Family
from support.families.tokenizer import id_of

PARTS = ("image_processor", "video_processor", "tokenizer", "chat_template")
"""Of a processor: each has a file of its own."""


def published_name(family: Family, name: str) -> str:
    """What published checkpoints call a parameter of transformers 5."""
    for ours, theirs in family.weight_names:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def write_checkpoint(family: Family, draft: Draft, folder: Path) -> None:
    """Write what ``from_pretrained`` of transformers and of vLLM read; the folder may be missing."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {published_name(family, name): value for name, value in untied_weights(draft.model).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_configs(family, draft, folder)
    write_processor(family, draft.processor, folder)


def untied_weights(model: Any) -> dict[str, Tensor]:
    """All weights by name; of two names for one tensor only that of the embedding."""
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    weights = {name: value.detach().float().contiguous() for name, value in model.state_dict().items()}
    return {name: value for name, value in weights.items() if not (tied and name == "lm_head.weight")}


def write_configs(family: Family, draft: Draft, folder: Path) -> None:
    config = draft.model.config.to_dict()
    config.pop("dtype", None)
    published = {"architectures": [type(draft.model).__name__], "torch_dtype": "float32"}
    write_json(folder / "config.json", family.publish_config(config) | published)
    tokenizer = draft.processor.tokenizer
    ends = [id_of(tokenizer, token) for token in family.eos_tokens]
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends if len(ends) > 1 else ends[0],
        pad_token_id=tokenizer.pad_token_id,
        **family.generation,
    ).save_pretrained(folder)


def write_processor(family: Family, processor: Any, folder: Path) -> None:
    processor.tokenizer.save_pretrained(folder)
    name = {"processor_class": type(processor).__name__}
    write_json(folder / "preprocessor_config.json", processor.image_processor.to_dict() | name)
    if getattr(processor, "video_processor", None) is not None:
        write_json(folder / "video_preprocessor_config.json", processor.video_processor.to_dict() | name)
    if family.processor_config:
        settings = {key: value for key, value in processor.to_dict().items() if key not in PARTS}
        write_json(folder / "processor_config.json", settings | name)
    if family.template_file == "chat_template.json":
        write_json(folder / family.template_file, {"chat_template": processor.chat_template})
    elif family.template_file is not None:
        (folder / family.template_file).write_text(processor.chat_template)


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
