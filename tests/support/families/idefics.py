"""Idefics3 and SmolVLM: tiles with their row and column as tokens."""

from typing import Final

from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
    SmolVLMVisionConfig,
)

from support.families import templates
from support.families.family import Draft, Family
from support.families.sizes import PATCH, TEXT, TILE, VISION
from support.families.tokenizer import id_of, train_tokenizer, vocabulary_settings

ROLES: Final = {
    "fake_image_token": "<fake_token_around_image>",
    "image_token": "<image>",
    "end_of_utterance_token": "<end_of_utterance>",
    "global_image_token": "<global-img>",
}
CELLS: Final = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
SCALE: Final = 2
"""Pixel shuffle: patches on a side that become one token."""
TOKENS_OF_A_TILE: Final = (TILE // PATCH // SCALE) ** 2


def llama_tokenizer() -> PreTrainedTokenizerFast:
    special = ("<|begin_of_text|>", "<|end_of_text|>", "<|pad|>", *ROLES.values(), *CELLS)
    return train_tokenizer(
        special, bos="<|begin_of_text|>", eos="<|end_of_text|>", pad="<|pad|>", adds_bos=True, roles=ROLES
    )


def smol_tokenizer() -> PreTrainedTokenizerFast:
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *ROLES.values(), *CELLS)
    return train_tokenizer(
        special, bos="<|im_start|>", eos="<end_of_utterance>", pad="<|im_end|>", unk="<|endoftext|>", roles=ROLES
    )


def text_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(**TEXT, **vocabulary_settings(tokenizer), tie_word_embeddings=False)


def draft_idefics3() -> Draft:
    tokenizer = llama_tokenizer()
    config = Idefics3Config(
        vision_config=VISION | {"image_size": TILE, "patch_size": PATCH},
        text_config=text_config(tokenizer),
        image_token_id=id_of(tokenizer, "<image>"),
        scale_factor=SCALE,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessor(size={"longest_edge": 2 * TILE}, max_image_size={"longest_edge": TILE}),
        tokenizer=tokenizer,
        image_seq_len=TOKENS_OF_A_TILE,
        chat_template=templates.idefics("<|begin_of_text|>"),
    )
    return Draft(Idefics3ForConditionalGeneration(config), processor)


def draft_smolvlm() -> Draft:
    tokenizer = smol_tokenizer()
    config = SmolVLMConfig(
        vision_config=SmolVLMVisionConfig(**VISION, image_size=TILE, patch_size=PATCH),
        text_config=text_config(tokenizer),
        image_token_id=id_of(tokenizer, "<image>"),
        scale_factor=SCALE,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    edges = {"max_image_size": {"longest_edge": TILE}}
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(size={"longest_edge": 2 * TILE}, **edges),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(size={"longest_edge": TILE}, **edges),
        image_seq_len=TOKENS_OF_A_TILE,
        chat_template=templates.idefics("<|im_start|>"),
    )
    return Draft(SmolVLMForConditionalGeneration(config), processor)


IDEFICS_FAMILIES: Final = (
    Family(
        name="idefics3",
        model_type="idefics3",
        draft=draft_idefics3,
        eos_tokens=("<|end_of_text|>", "<end_of_utterance>"),
        notes="the turn ends with a token that is not the tokenizer's EOS; the decoder is called text_model",
    ),
    Family(
        name="smolvlm",
        model_type="smolvlm",
        draft=draft_smolvlm,
        eos_tokens=("<end_of_utterance>",),
        notes="the processor needs num2words; BOS is the token that opens a turn",
    ),
)
