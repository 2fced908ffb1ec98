"""The configurations of the published LLaVA-1.5 models, written out by hand: sizes as on the models' pages."""

import json
from pathlib import Path
from typing import Any

SMALL: dict[str, Any] = {
    "text_config": {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
    "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2},
}
"""Widths and depths of a small instance; all else stays: 336 pixels, 576 image tokens, 32,064 words."""


def config_7b() -> dict[str, Any]:
    """``llava-hf/llava-1.5-7b-hf``: Vicuna-7B behind CLIP ViT-L/14 of 336 pixels."""
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "ignore_index": -100,
        "image_token_index": 32000,
        "image_seq_length": 576,
        "pad_token_id": 32001,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": False,
        "dtype": "float16",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "text_config": {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-05,
            "vocab_size": 32064,
            "tie_word_embeddings": False,
            "dtype": "float16",
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "image_size": 336,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "projection_dim": 768,
        },
    }


def config_13b() -> dict[str, Any]:
    """``llava-hf/llava-1.5-13b-hf``: Vicuna-13B behind the same vision tower."""
    config = config_7b()
    config["text_config"] |= {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
    }
    return config


def small(config: dict[str, Any]) -> dict[str, Any]:
    """The same architecture with little in it."""
    return config | {name: config[name] | sizes for name, sizes in SMALL.items()}


def write_config(folder: Path, config: dict[str, Any]) -> str:
    """A model folder with nothing but ``config.json``; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)
