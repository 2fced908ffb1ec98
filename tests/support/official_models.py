"""The configurations of published models of several families, written out by hand: sizes as on the models' pages."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from support.official_llava import config_7b, config_13b, write_config

QWEN_TOKENS: Final = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}


def qwen2_5_vl_7b() -> dict[str, Any]:
    """``Qwen/Qwen2.5-VL-7B-Instruct``, whose language model's keys lie at the top."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": 152064,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vision_config": {
            "depth": 32,
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "in_chans": 3,
            "out_hidden_size": 3584,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "temporal_patch_size": 2,
        },
        **QWEN_TOKENS,
    }


def qwen3_vl(text: Mapping[str, Any], vision: Mapping[str, Any] | None = None, tied: bool = True) -> dict[str, Any]:
    """A model of the Qwen3-VL series."""
    rope = {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "tie_word_embeddings": tied,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "head_dim": 128,
            "num_key_value_heads": 8,
            "max_position_embeddings": 262144,
            "rms_norm_eps": 1e-06,
            "rope_theta": 5000000,
            "rope_scaling": rope,
            "vocab_size": 151936,
            "tie_word_embeddings": tied,
            "dtype": "bfloat16",
            **text,
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "in_channels": 3,
            "out_hidden_size": text["hidden_size"],
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [5, 11, 17],
            **(vision or {}),
        },
        **QWEN_TOKENS,
    }


def qwen3_vl_2b() -> dict[str, Any]:
    """``Qwen/Qwen3-VL-2B-Instruct``."""
    return qwen3_vl(
        {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16}
    )


def qwen3_vl_4b() -> dict[str, Any]:
    """``Qwen/Qwen3-VL-4B-Instruct``."""
    return qwen3_vl(
        {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32}
    )


def qwen3_vl_8b() -> dict[str, Any]:
    """``Qwen/Qwen3-VL-8B-Instruct``."""
    tower = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
    return qwen3_vl(
        {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
        tower,
        tied=False,
    )


def smolvlm_500m() -> dict[str, Any]:
    """``HuggingFaceTB/SmolVLM-500M-Instruct``: SmolLM2-360M behind SigLIP of 512 pixels."""
    return {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "model_type": "idefics3",
        "image_token_id": 49190,
        "scale_factor": 4,
        "pad_token_id": 2,
        "tie_word_embeddings": False,
        "vocab_size": 49280,
        "torch_dtype": "bfloat16",
        "text_config": {
            "model_type": "llama",
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_hidden_layers": 32,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
            "head_dim": 64,
            "max_position_embeddings": 8192,
            "rope_theta": 100000,
            "vocab_size": 49280,
            "pad_token_id": 2,
            "tie_word_embeddings": False,
        },
        "vision_config": {
            "model_type": "idefics3",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
    }


CONFIGS: Final[Mapping[str, Callable[[], dict[str, Any]]]] = {
    "llava-hf/llava-1.5-7b-hf": config_7b,
    "llava-hf/llava-1.5-13b-hf": config_13b,
    "Qwen/Qwen2.5-VL-7B-Instruct": qwen2_5_vl_7b,
    "Qwen/Qwen3-VL-2B-Instruct": qwen3_vl_2b,
    "Qwen/Qwen3-VL-4B-Instruct": qwen3_vl_4b,
    "Qwen/Qwen3-VL-8B-Instruct": qwen3_vl_8b,
    "HuggingFaceTB/SmolVLM-500M-Instruct": smolvlm_500m,
}
"""By the names that the shipped configurations give."""
PARAMETERS: Final = {
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen3-VL-2B-Instruct": 2_127_532_032,
    "Qwen/Qwen3-VL-4B-Instruct": 4_437_815_808,
    "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
    "HuggingFaceTB/SmolVLM-500M-Instruct": 507_482_304,
}
"""Sizes that the models' pages give."""


def write_official(name: str, folder: Path) -> str:
    """A folder with the ``config.json`` of a published model and nothing else; returns its path."""
    return write_config(folder / name.rpartition("/")[2], CONFIGS[name]())
