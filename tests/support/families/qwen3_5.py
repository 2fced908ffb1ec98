"""Qwen3.5: the tower of Qwen3-VL before a decoder in which linear attention alternates with full attention."""

from typing import Any, Final

from transformers import (
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)

from support.families.family import Draft, Family
from support.families.qwen import SPECIAL_TOKENS, TOWER, qwen3_processor, special_ids, text_settings
from support.families.sizes import HEAD_SIZE, HIDDEN_SIZE
from support.families.tokenizer import train_tokenizer

LINEAR_ATTENTION: Final[dict[str, Any]] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": HEAD_SIZE,
    "linear_value_head_dim": HEAD_SIZE,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
}


def draft_qwen3_5() -> Draft:
    tokenizer = train_tokenizer(SPECIAL_TOKENS, eos="<|im_end|>", pad="<|endoftext|>")
    rope = {"rope_theta": 1e7, "mrope_section": [2, 1, 1], "mrope_interleaved": True, "partial_rotary_factor": 0.25}
    positions = {"depth": 2, "num_position_embeddings": 64}
    config = Qwen3_5Config(
        text_config=text_settings(tokenizer, rope) | LINEAR_ATTENTION | {"head_dim": HEAD_SIZE},
        vision_config=TOWER | positions | {"patch_size": 16, "out_hidden_size": HIDDEN_SIZE},
        tie_word_embeddings=True,
        **special_ids(tokenizer),
    )
    return Draft(Qwen3_5ForConditionalGeneration(config), qwen3_processor(tokenizer))


QWEN3_5_FAMILIES: Final = (
    Family(
        name="qwen3_5",
        model_type="qwen3_5",
        draft=draft_qwen3_5,
        eos_tokens=("<|im_end|>", "<|endoftext|>"),
        generation={"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20},
        processor_config=False,
        engine_agrees=False,
        notes="linear attention (gated delta net), for which vLLM on a CPU takes bfloat16 alone",
    ),
)
