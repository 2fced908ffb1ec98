"""Mistral Small 3.1: Pixtral's tower with patches merged before the language model."""

from typing import Final

from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralImageProcessor,
    PixtralProcessor,
    PixtralVisionConfig,
)

from support.families import templates
from support.families.family import Draft, Family
from support.families.llava import UNWRAPPED, mistral_tokenizer
from support.families.sizes import HEAD_SIZE, PATCH, TEXT, VISION
from support.families.tokenizer import id_of, vocabulary_settings

MERGED: Final = 2
"""Patches on a side that become one token."""
LONGEST_EDGE: Final = 112


def draft_mistral3() -> Draft:
    tokenizer = mistral_tokenizer()
    settings = vocabulary_settings(tokenizer)
    config = Mistral3Config(
        vision_config=PixtralVisionConfig(**VISION, image_size=LONGEST_EDGE, patch_size=PATCH),
        text_config=MistralConfig(**TEXT, **settings, head_dim=HEAD_SIZE, tie_word_embeddings=False),
        image_token_index=id_of(tokenizer, "[IMG]"),
        spatial_merge_size=MERGED,
        tie_word_embeddings=False,
    )
    processor = PixtralProcessor(
        image_processor=PixtralImageProcessor(
            size={"longest_edge": LONGEST_EDGE}, patch_size={"height": PATCH, "width": PATCH}
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        spatial_merge_size=MERGED,
        chat_template=templates.MISTRAL,
    )
    return Draft(Mistral3ForConditionalGeneration(config), processor)


MISTRAL3_FAMILIES: Final = (
    Family(
        name="mistral3",
        model_type="mistral3",
        draft=draft_mistral3,
        eos_tokens=("</s>",),
        weight_names=UNWRAPPED,
        notes="images of any shape, merged patches",
    ),
)
