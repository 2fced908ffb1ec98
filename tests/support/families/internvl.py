"""InternVL 3 in the layout of transformers (the models whose names end in ``-hf``)."""

from typing import Final

from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    Qwen2Config,
)

from support.families import templates
from support.families.family import Draft, Family
from support.families.llava import UNWRAPPED
from support.families.sizes import PATCH, SQUARE, TEXT, TILE, VISION
from support.families.tokenizer import id_of, train_tokenizer, vocabulary_settings

ROLES: Final = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
TOKENS_OF_A_TILE: Final = (TILE // PATCH // 2) ** 2


def draft_internvl() -> Draft:
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *ROLES.values())
    tokenizer = train_tokenizer(special, eos="<|im_end|>", pad="<|endoftext|>", roles=ROLES)
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**VISION, image_size=[TILE, TILE], patch_size=[PATCH, PATCH]),
        text_config=Qwen2Config(**TEXT, **vocabulary_settings(tokenizer), tie_word_embeddings=True),
        image_token_id=id_of(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=TOKENS_OF_A_TILE,
        tie_word_embeddings=True,
    )
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=SQUARE),
        image_seq_length=TOKENS_OF_A_TILE,
        chat_template=templates.chatml("<IMG_CONTEXT>\n"),
    )
    return Draft(InternVLForConditionalGeneration(config), processor)


INTERNVL_FAMILIES: Final = (
    Family(
        name="internvl",
        model_type="internvl",
        draft=draft_internvl,
        eos_tokens=("<|im_end|>",),
        weight_names=UNWRAPPED,
        template_file="chat_template.jinja",
        notes="tiles, pixel shuffle, tied Qwen2",
    ),
)
