"""Command A Vision: SigLIP before a Cohere decoder, which scales its logits."""

from typing import Final

from transformers import (
    Cohere2Config,
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    Cohere2VisionImageProcessor,
    Cohere2VisionProcessor,
)

from support.families import templates
from support.families.family import Draft, Family
from support.families.llava import siglip_tower
from support.families.sizes import PATCH, SQUARE, TEXT, TILE
from support.families.tokenizer import id_of, train_tokenizer, vocabulary_settings

ROLES: Final = {
    "boi_token": "<|START_OF_IMG|>",
    "eoi_token": "<|END_OF_IMG|>",
    "image_token": "<|IMG_PATCH|>",
    "img_line_break_token": "<|IMG_LINE_BREAK|>",
}
SPECIAL_TOKENS: Final = (
    *("<PAD>", "<UNK>", "<BOS_TOKEN>", "<EOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    *("<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    *ROLES.values(),
)
LOGIT_SCALE: Final = 0.25
MERGED: Final = 2
"""Patches on a side that become one token."""


def draft_cohere2_vision() -> Draft:
    tokenizer = train_tokenizer(
        SPECIAL_TOKENS,
        bos="<BOS_TOKEN>",
        eos="<|END_OF_TURN_TOKEN|>",
        pad="<PAD>",
        unk="<UNK>",
        adds_bos=True,
        roles=ROLES,
    )
    config = Cohere2VisionConfig(
        vision_config=siglip_tower(),
        text_config=Cohere2Config(
            **TEXT,
            **vocabulary_settings(tokenizer),
            logit_scale=LOGIT_SCALE,
            sliding_window=4096,
            layer_types=["sliding_attention", "full_attention"],
        ),
        downsample_factor=MERGED,
        image_token_id=id_of(tokenizer, "<|IMG_PATCH|>"),
        alignment_intermediate_size=128,
    )
    # The processor's `patch_size` is the tokens on a side of a tile.
    image_processor = Cohere2VisionImageProcessor(
        size=SQUARE, crop_to_patches=True, max_patches=4, patch_size=TILE // PATCH // MERGED
    )
    processor = Cohere2VisionProcessor(
        image_processor=image_processor, tokenizer=tokenizer, chat_template=templates.COHERE
    )
    return Draft(Cohere2VisionForConditionalGeneration(config), processor)


COHERE_FAMILIES: Final = (
    Family(
        name="cohere2_vision",
        model_type="cohere2_vision",
        draft=draft_cohere2_vision,
        eos_tokens=("<|END_OF_TURN_TOKEN|>",),
        weight_names=(("model.vision_tower.", "model.vision_tower.vision_model."),),
        logit_scale=LOGIT_SCALE,
        engine_lora=False,
        notes="scaled logits; vLLM has no LoRA for it",
    ),
)
