"""LLaVA-1.5, LLaVA-interleave, LLaVA-NeXT and LLaVA-OneVision as llava-hf publishes them, and Pixtral."""

from typing import Any, Final

from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GraniteConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    MistralConfig,
    PixtralImageProcessor,
    PixtralProcessor,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from support.families import templates
from support.families.family import Draft, Family
from support.families.sizes import HEAD_SIZE, PATCH, SQUARE, TEXT, TILE, VISION
from support.families.tokenizer import id_of, train_tokenizer, vocabulary_settings

PINPOINTS: Final = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE], [3 * TILE, TILE], [TILE, 3 * TILE]]
"""Grids of tiles that a large image is cut into."""
LOGITS_SCALING: Final = 4.0
"""What Granite's decoder divides its logits by."""
LANGUAGE_FIRST: Final = (
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
)
UNWRAPPED: Final = (*LANGUAGE_FIRST, ("model.", ""))
"""Published names of a tower that has always been a plain model."""
WRAPPED_TOWER: Final = (*LANGUAGE_FIRST, ("model.vision_tower.", "vision_tower.vision_model."), ("model.", ""))
"""The same with a CLIP or SigLIP tower, which was published inside its wrapper."""


def clip_tower() -> CLIPVisionConfig:
    return CLIPVisionConfig(**VISION, image_size=TILE, patch_size=PATCH, projection_dim=64)


def siglip_tower(**settings: Any) -> SiglipVisionConfig:
    settings |= {"vision_use_head": False}
    return SiglipVisionConfig(**VISION, image_size=TILE, patch_size=PATCH, **settings)


def vicuna_tokenizer() -> PreTrainedTokenizerFast:
    special = ("<unk>", "<s>", "</s>", "<image>", "<pad>")
    roles = {"image_token": "<image>"}
    return train_tokenizer(special, bos="<s>", eos="</s>", pad="<pad>", unk="<unk>", adds_bos=True, roles=roles)


def qwen_tokenizer(*, video: bool = False) -> PreTrainedTokenizerFast:
    roles = {"image_token": "<image>"} | ({"video_token": "<video>"} if video else {})
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *roles.values())
    return train_tokenizer(special, eos="<|im_end|>", pad="<|endoftext|>", roles=roles)


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    special = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]")
    return train_tokenizer(special, bos="<s>", eos="</s>", pad="<pad>", unk="<unk>", adds_bos=True)


def draft_llava() -> Draft:
    tokenizer = vicuna_tokenizer()
    config = LlavaConfig(
        vision_config=clip_tower(),
        text_config=LlamaConfig(**TEXT, **vocabulary_settings(tokenizer), tie_word_embeddings=False),
        image_token_index=id_of(tokenizer, "<image>"),
        image_seq_length=(TILE // PATCH) ** 2,
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": TILE}, crop_size=SQUARE),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=templates.LLAVA,
    )
    return Draft(LlavaForConditionalGeneration(config), processor)


def draft_interleave() -> Draft:
    tokenizer = qwen_tokenizer()
    config = LlavaConfig(
        vision_config=siglip_tower(),
        text_config=Qwen2Config(**TEXT, **vocabulary_settings(tokenizer), tie_word_embeddings=True),
        image_token_index=id_of(tokenizer, "<image>"),
        image_seq_length=(TILE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    processor = LlavaProcessor(
        image_processor=SiglipImageProcessor(size=SQUARE),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=templates.LLAVA_QWEN,
    )
    return Draft(LlavaForConditionalGeneration(config), processor)


def draft_pixtral() -> Draft:
    tokenizer = mistral_tokenizer()
    settings = vocabulary_settings(tokenizer)
    config = LlavaConfig(
        vision_config=PixtralVisionConfig(**VISION, image_size=64, patch_size=16),
        text_config=MistralConfig(**TEXT, **settings, head_dim=HEAD_SIZE, tie_word_embeddings=False),
        image_token_index=id_of(tokenizer, "[IMG]"),
        image_seq_length=1,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    processor = PixtralProcessor(
        image_processor=PixtralImageProcessor(size={"longest_edge": 64}, patch_size={"height": 16, "width": 16}),
        tokenizer=tokenizer,
        patch_size=16,
        chat_template=templates.MISTRAL,
    )
    return Draft(LlavaForConditionalGeneration(config), processor)


def draft_next() -> Draft:
    tokenizer = vicuna_tokenizer()
    settings = vocabulary_settings(tokenizer)
    config = LlavaNextConfig(
        vision_config=clip_tower(),
        text_config=MistralConfig(**TEXT, **settings, tie_word_embeddings=False, sliding_window=None),
        image_token_index=id_of(tokenizer, "<image>"),
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=(TILE // PATCH) ** 2,
    )
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": TILE}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=templates.LLAVA_MISTRAL,
    )
    return Draft(LlavaNextForConditionalGeneration(config), processor)


def draft_granite() -> Draft:
    tokenizer = qwen_tokenizer()
    multipliers: dict[str, Any] = {
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.0625,
        "residual_multiplier": 0.22,
    }
    config = LlavaNextConfig(
        vision_config=siglip_tower(),
        text_config=GraniteConfig(
            **TEXT,
            **vocabulary_settings(tokenizer),
            **multipliers,
            logits_scaling=LOGITS_SCALING,
            tie_word_embeddings=True,
        ),
        image_token_index=id_of(tokenizer, "<image>"),
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=(TILE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        vision_feature_layer=[-2, -1],
        tie_word_embeddings=True,
    )
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": TILE}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=templates.LLAVA_QWEN,
    )
    return Draft(LlavaNextForConditionalGeneration(config), processor)


def draft_onevision() -> Draft:
    tokenizer = qwen_tokenizer(video=True)
    config = LlavaOnevisionConfig(
        vision_config=siglip_tower(),
        text_config=Qwen2Config(**TEXT, **vocabulary_settings(tokenizer), tie_word_embeddings=True),
        image_token_index=id_of(tokenizer, "<image>"),
        video_token_index=id_of(tokenizer, "<video>"),
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_9",
        tie_word_embeddings=True,
    )
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=PINPOINTS),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=SQUARE),
        num_image_tokens=(TILE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        chat_template=templates.LLAVA_QWEN,
    )
    return Draft(LlavaOnevisionForConditionalGeneration(config), processor)


LLAVA_FAMILIES: Final = (
    Family(
        name="llava",
        model_type="llava",
        draft=draft_llava,
        eos_tokens=("</s>",),
        weight_names=WRAPPED_TOWER,
        template_file="chat_template.jinja",
        notes="LLaVA-1.5: CLIP without its last layer, Llama",
    ),
    Family(
        name="llava_interleave",
        model_type="llava",
        draft=draft_interleave,
        eos_tokens=("<|im_end|>",),
        weight_names=WRAPPED_TOWER,
        notes="the class of LLaVA-1.5 with SigLIP and a tied Qwen2",
    ),
    Family(
        name="pixtral",
        model_type="llava",
        draft=draft_pixtral,
        eos_tokens=("</s>",),
        weight_names=UNWRAPPED,
        notes="the class of LLaVA-1.5 with images of any shape, and a template that writes BOS",
    ),
    Family(
        name="llava_next",
        model_type="llava_next",
        draft=draft_next,
        eos_tokens=("</s>",),
        weight_names=WRAPPED_TOWER,
        notes="tiles beside the whole image; the template ignores add_generation_prompt",
    ),
    Family(
        name="granite_vision",
        model_type="llava_next",
        draft=draft_granite,
        eos_tokens=("<|im_end|>",),
        weight_names=WRAPPED_TOWER,
        logit_scale=1 / LOGITS_SCALING,
        notes="the class of LLaVA-NeXT with SigLIP's features of several layers and a Granite, which scales its logits",
    ),
    Family(
        name="llava_onevision",
        model_type="llava_onevision",
        draft=draft_onevision,
        eos_tokens=("<|im_end|>", "<|endoftext|>"),
        weight_names=WRAPPED_TOWER,
        engine_lora=False,
        notes="tiles beside the whole image, tied Qwen2; vLLM has no LoRA for it",
    ),
)
