"""Gemma 3 and PaliGemma: attention in both directions within an image."""

from typing import Any, Final

from transformers import (
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma3TextConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
)

from support.families import templates
from support.families.family import Draft, Family
from support.families.llava import WRAPPED_TOWER, siglip_tower
from support.families.sizes import HEAD_SIZE, HIDDEN_SIZE, PATCH, SQUARE, TEXT, TILE
from support.families.tokenizer import PADDING_ROWS, id_of, train_tokenizer, vocabulary_settings

ROLES: Final = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}
GEMMA_TEXT: Final[dict[str, Any]] = TEXT | {
    "initializer_range": 0.05,  # Gemma scales embeddings by the root of the width
    "head_dim": HEAD_SIZE,
    "query_pre_attn_scalar": 16,
}
TOKENS_OF_AN_IMAGE: Final = 4


def gemma_tokenizer(special: tuple[str, ...], roles: dict[str, str]) -> PreTrainedTokenizerFast:
    ends = ("<pad>", "<eos>", "<bos>", "<unk>")
    tokenizer = train_tokenizer(
        (*ends, *special), bos="<bos>", eos="<eos>", pad="<pad>", unk="<unk>", adds_bos=True, roles=roles
    )
    # Runs of line breaks are tokens of Gemma; vLLM looks for them around images.
    tokenizer.add_tokens(["\n" * count for count in (1, 2, 3, 4)])
    return tokenizer


def draft_gemma3() -> Draft:
    tokenizer = gemma_tokenizer(("<start_of_turn>", "<end_of_turn>", *ROLES.values()), ROLES)
    ends: dict[str, Any] = {"eos_token_id": [id_of(tokenizer, token) for token in ("<eos>", "<end_of_turn>")]}
    config = Gemma3Config(
        vision_config=siglip_tower(),
        text_config=Gemma3TextConfig(
            **GEMMA_TEXT,
            **vocabulary_settings(tokenizer),
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
        ),
        mm_tokens_per_image=TOKENS_OF_AN_IMAGE,
        boi_token_index=id_of(tokenizer, "<start_of_image>"),
        eoi_token_index=id_of(tokenizer, "<end_of_image>"),
        image_token_index=id_of(tokenizer, "<image_soft_token>"),
        **ends,
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size=SQUARE, image_seq_length=TOKENS_OF_AN_IMAGE),
        tokenizer=tokenizer,
        image_seq_length=TOKENS_OF_AN_IMAGE,
        chat_template=templates.GEMMA,
    )
    return Draft(Gemma3ForConditionalGeneration(config), processor)


def draft_paligemma() -> Draft:
    roles = {"image_token": "<image>"}
    tokenizer = gemma_tokenizer(("<image>",), roles)
    patches = (TILE // PATCH) ** 2
    config = PaliGemmaConfig(
        vision_config=siglip_tower(projection_dim=HIDDEN_SIZE, num_image_tokens=patches),
        text_config=Gemma2Config(**GEMMA_TEXT, **vocabulary_settings(tokenizer)),
        image_token_index=id_of(tokenizer, "<image>"),
        projection_dim=HIDDEN_SIZE,
        hidden_size=HIDDEN_SIZE,
        vocab_size=len(tokenizer) + PADDING_ROWS,
    )
    image_processor: Any = SiglipImageProcessor(size=SQUARE)
    image_processor.image_seq_length = patches
    processor = PaliGemmaProcessor(image_processor=image_processor, tokenizer=tokenizer)
    return Draft(PaliGemmaForConditionalGeneration(config), processor)


GEMMA_FAMILIES: Final = (
    Family(
        name="gemma3",
        model_type="gemma3",
        draft=draft_gemma3,
        eos_tokens=("<eos>", "<end_of_turn>"),
        weight_names=WRAPPED_TOWER,
        generation={"do_sample": True, "top_p": 0.95, "top_k": 64},
        engine_agrees=False,
        notes="vLLM on a CPU attends causally within an image",
    ),
    Family(
        name="paligemma",
        model_type="paligemma",
        draft=draft_paligemma,
        eos_tokens=("<eos>",),
        weight_names=WRAPPED_TOWER,
        template_file=None,
        processor_config=False,
        notes="no chat template, so it must be refused",
    ),
)
