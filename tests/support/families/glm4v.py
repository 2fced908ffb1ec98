"""GLM-4.1V: a tower of its own, M-RoPE in a GLM decoder, and four ends of an answer."""

from typing import Final

from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
)

from support.families import templates
from support.families.family import Draft, Family
from support.families.sizes import HIDDEN_SIZE, PATCH, TEXT, TILE
from support.families.tokenizer import id_of, train_tokenizer, vocabulary_settings

SPECIAL_TOKENS: Final = (
    *("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "</answer>"),
    *("<|begin_of_image|>", "<|end_of_image|>", "<|image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|video|>"),
)
EDGES: Final = {"shortest_edge": 56 * 56 * 2, "longest_edge": 28 * 28 * 24 * 2}
"""Pixels of an image, counted for two frames."""


def draft_glm4v() -> Draft:
    tokenizer = train_tokenizer(SPECIAL_TOKENS, eos="<|endoftext|>", pad="<|endoftext|>")
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [2, 3, 3]}
    config = Glm4vConfig(
        text_config=TEXT | vocabulary_settings(tokenizer) | {"rope_parameters": rope, "tie_word_embeddings": False},
        vision_config={
            "depth": 2,
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": 128,
            "num_heads": 4,
            "image_size": 2 * TILE,
            "patch_size": PATCH,
            "out_hidden_size": HIDDEN_SIZE,
        },
        image_token_id=id_of(tokenizer, "<|image|>"),
        image_start_token_id=id_of(tokenizer, "<|begin_of_image|>"),
        image_end_token_id=id_of(tokenizer, "<|end_of_image|>"),
        video_token_id=id_of(tokenizer, "<|video|>"),
        video_start_token_id=id_of(tokenizer, "<|begin_of_video|>"),
        video_end_token_id=id_of(tokenizer, "<|end_of_video|>"),
        tie_word_embeddings=False,
    )
    processor = Glm4vProcessor(
        image_processor=Glm4vImageProcessor(size=EDGES),
        tokenizer=tokenizer,
        video_processor=Glm4vVideoProcessor(size=EDGES),
        chat_template=templates.GLM,
    )
    return Draft(Glm4vForConditionalGeneration(config), processor)


GLM4V_FAMILIES: Final = (
    Family(
        name="glm4v",
        model_type="glm4v",
        draft=draft_glm4v,
        eos_tokens=("<|endoftext|>", "<|user|>", "<|observation|>", "</answer>"),
        template_file="chat_template.jinja",
        processor_config=False,
        linear_layers=("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"),
        notes="M-RoPE on half of a head, one weight for gate and up projection, padding by the EOS token",
    ),
)
