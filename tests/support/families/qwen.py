"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images of any shape, positions in three dimensions."""

from typing import Any, Final

from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from support.families import templates
from support.families.family import Draft, Family
from support.families.sizes import HEAD_SIZE, HIDDEN_SIZE, TEXT
from support.families.tokenizer import id_of, train_tokenizer, vocabulary_settings

IMAGE: Final = "<|vision_start|><|image_pad|><|vision_end|>"
SPECIAL_TOKENS: Final = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
TOWER: Final[dict[str, Any]] = {"hidden_size": HIDDEN_SIZE, "intermediate_size": 128, "num_heads": 4}
PIXELS: Final = {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 24}
"""Of Qwen2-VL and Qwen2.5-VL, whose image token is a square of 28 pixels."""
EDGES: Final = {"shortest_edge": 64 * 64, "longest_edge": 32 * 32 * 24}
"""Of Qwen3-VL, whose image token is a square of 32 pixels: pixels of an image, whatever the keys say."""
FLAT_NAMES: Final = (("model.language_model.", "model."), ("model.visual.", "visual."))


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What a configuration says of the tokens around and in place of images."""
    return {
        "image_token_id": id_of(tokenizer, "<|image_pad|>"),
        "video_token_id": id_of(tokenizer, "<|video_pad|>"),
        "vision_start_token_id": id_of(tokenizer, "<|vision_start|>"),
        "vision_end_token_id": id_of(tokenizer, "<|vision_end|>"),
    }


def text_settings(tokenizer: PreTrainedTokenizerFast, rope: dict[str, Any]) -> dict[str, Any]:
    rope = {"rope_type": "default", **rope}
    return TEXT | vocabulary_settings(tokenizer) | {"tie_word_embeddings": True, "rope_parameters": rope}


def flat_config(config: dict[str, Any]) -> dict[str, Any]:
    """``config.json`` as Qwen2-VL and Qwen2.5-VL are published: the language model's keys lie at the top."""
    text = {name: value for name, value in config.pop("text_config").items() if name != "model_type"}
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope["rope_theta"]
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    return text | config


def draft_qwen2_vl() -> Draft:
    tokenizer = train_tokenizer(SPECIAL_TOKENS, eos="<|im_end|>", pad="<|endoftext|>")
    config = Qwen2VLConfig(
        text_config=text_settings(tokenizer, {"rope_theta": 1e6, "mrope_section": [4, 6, 6]}),
        vision_config={"depth": 2, "embed_dim": 64, "hidden_size": HIDDEN_SIZE, "num_heads": 4, "mlp_ratio": 2},
        tie_word_embeddings=True,
        **special_ids(tokenizer),
    )
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**PIXELS),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**PIXELS),
        chat_template=templates.chatml(IMAGE, system=True),
    )
    return Draft(Qwen2VLForConditionalGeneration(config), processor)


def draft_qwen2_5_vl() -> Draft:
    tokenizer = train_tokenizer(SPECIAL_TOKENS, eos="<|im_end|>", pad="<|endoftext|>")
    attention = {"window_size": 56, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(
        text_config=text_settings(tokenizer, {"rope_theta": 1e6, "mrope_section": [4, 6, 6]}),
        vision_config=TOWER | attention | {"depth": 2, "patch_size": 14, "out_hidden_size": HIDDEN_SIZE},
        tie_word_embeddings=True,
        **special_ids(tokenizer),
    )
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**PIXELS),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**PIXELS),
        chat_template=templates.chatml(IMAGE, system=True),
    )
    return Draft(Qwen2_5_VLForConditionalGeneration(config), processor)


def qwen3_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    """The processor of Qwen3-VL and what came after it."""
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=EDGES, patch_size=16),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(size=EDGES, patch_size=16),
        chat_template=templates.chatml(IMAGE),
    )


def draft_qwen3_vl() -> Draft:
    tokenizer = train_tokenizer(SPECIAL_TOKENS, eos="<|im_end|>", pad="<|endoftext|>")
    rope = {"rope_theta": 5e6, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    deepstack = {"depth": 3, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    config = Qwen3VLConfig(
        text_config=text_settings(tokenizer, rope) | {"head_dim": HEAD_SIZE},
        vision_config=TOWER | deepstack | {"patch_size": 16, "out_hidden_size": HIDDEN_SIZE},
        tie_word_embeddings=True,
        **special_ids(tokenizer),
    )
    return Draft(Qwen3VLForConditionalGeneration(config), qwen3_processor(tokenizer))


QWEN_FAMILIES: Final = (
    Family(
        name="qwen2_vl",
        model_type="qwen2_vl",
        draft=draft_qwen2_vl,
        eos_tokens=("<|im_end|>", "<|endoftext|>"),
        weight_names=FLAT_NAMES,
        generation={"do_sample": True, "temperature": 0.01, "top_p": 0.001, "top_k": 1},
        publish_config=flat_config,
        processor_config=False,
        notes="M-RoPE; sampling defaults that are nearly greedy",
    ),
    Family(
        name="qwen2_5_vl",
        model_type="qwen2_5_vl",
        draft=draft_qwen2_5_vl,
        eos_tokens=("<|im_end|>", "<|endoftext|>"),
        weight_names=FLAT_NAMES,
        generation={"do_sample": True, "temperature": 1e-6, "repetition_penalty": 1.05},
        publish_config=flat_config,
        processor_config=False,
        notes="M-RoPE, windowed attention in the tower; sampling defaults with a repetition penalty",
    ),
    Family(
        name="qwen3_vl",
        model_type="qwen3_vl",
        draft=draft_qwen3_vl,
        eos_tokens=("<|im_end|>", "<|endoftext|>"),
        generation={"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
        processor_config=False,
        notes="interleaved M-RoPE, image features added to several layers (deepstack)",
    ),
)
