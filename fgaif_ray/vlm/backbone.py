"""The vision-language backbone: a frozen LLaVA and the ways into it that reward models, policy and critic share.

A LLaVA reads an image as a run of image tokens whose embeddings are replaced by the projected features of the
vision tower. The tower is never trained here, so its features depend on the image alone: whoever reads an
image more than once computes them once (``Backbone.image_features``) and merges them into the token
embeddings (``Backbone.input_embeddings``).
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from fgaif_ray.errors import UserError
from fgaif_ray.vlm.checkpoint import (
    broken,
    find_checkpoint,
    load_config_and_processor,
    naming_broken_file,
    weight_files,
)

PROMPT_CACHE: Final = 4096
"""Prompts whose token ids are remembered."""


@dataclass(eq=False)
class Backbone:
    """A frozen LLaVA with its processor.

    Adapters are injected into ``model`` in place, so one backbone serves any number of them.
    """

    path: str
    """Where it was loaded from; written into the adapters trained on it."""
    model: Any
    """``LlavaForConditionalGeneration``, in eval mode, without gradients."""
    processor: Any
    tokenizer: Any
    image_token_id: int
    quantised: bool = False
    """Whether the language model's weights are held in 4 bits."""
    _prompt_ids: dict[str, list[int]] = field(default_factory=dict, repr=False)
    _image_tokens: dict[tuple[int, int], int] = field(default_factory=dict, repr=False)

    @property
    def language_model(self) -> nn.Module:
        """The decoder without its vocabulary head: ``inputs_embeds`` to ``last_hidden_state``."""
        module: nn.Module = self.model.model.language_model
        return module

    @property
    def hidden_size(self) -> int:
        """Width of the decoder's hidden states."""
        return int(self.model.config.text_config.hidden_size)

    @property
    def max_length(self) -> int:
        """Positions that the decoder was made for, image tokens included."""
        return int(self.model.config.text_config.max_position_embeddings)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    def move_to(self, device: torch.device | str) -> None:
        """Move the model; a quantised one stays on the GPU that it was loaded on."""
        if not self.quantised:
            self.model.to(device)

    @property
    def eos_token_id(self) -> int:
        """The token that ends a response."""
        return int(self.tokenizer.eos_token_id)

    def prompt_text(self, prompt: str) -> str:
        """The chat template with one image, the prompt, and the opening of the answer.

        Raises:
            ValueError: the prompt holds the image token, which would stand for a second image.
        """
        image_token = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        if image_token in prompt:
            raise ValueError(f"a prompt must not hold {image_token!r}: the image is put before it by the chat template")
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return text

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of ``prompt_text`` with the image as ONE token, ``[prompt_tokens]``: what vLLM expects.

        The tokenizer adds its special tokens only where the template has not written the BOS token itself.

        Raises:
            ValueError: the prompt holds the image token.
        """
        if prompt not in self._prompt_ids:
            text = self.prompt_text(prompt)
            begins = self.tokenizer.bos_token is not None and text.startswith(self.tokenizer.bos_token)
            encoded = self.tokenizer(text, add_special_tokens=not begins)
            if len(self._prompt_ids) >= PROMPT_CACHE:  # a service meets any number of prompts
                self._prompt_ids.clear()
            self._prompt_ids[prompt] = list(encoded["input_ids"])
        return list(self._prompt_ids[prompt])

    def image_token_count(self, image: Image.Image) -> int:
        """Image tokens that the processor makes of an image of this size."""
        if image.size not in self._image_tokens:
            blank = Image.new("RGB", image.size)
            encoded = self.processor(images=blank, text=self.processor.image_token)
            self._image_tokens[image.size] = list(encoded["input_ids"][0]).count(self.image_token_id)
        return self._image_tokens[image.size]

    def expanded_prompt_ids(self, prompt: str, image: Image.Image) -> list[int]:
        """Token ids of ``prompt_text`` with the image token repeated, ``[prompt_tokens]``: what the model reads.

        Raises:
            ValueError: the prompt holds the image token.
        """
        ids = self.prompt_ids(prompt)
        place = ids.index(self.image_token_id)
        return ids[:place] + [self.image_token_id] * self.image_token_count(image) + ids[place + 1 :]

    def pixel_values(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB images as the vision tower wants them, ``[images, channels, height, width]``, on the model's device."""
        encoded = self.processor.image_processor(images=list(images), return_tensors="pt")
        values: Tensor = encoded["pixel_values"].to(self.device, self.model.dtype)
        return values

    @torch.no_grad()
    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Features of the vision tower after the projector.

        Args:
            pixel_values: ``[images, channels, height, width]``.

        Returns:
            ``[images, image_tokens, hidden]``, without gradients.
        """
        return torch.stack(list(self.model.get_image_features(pixel_values).pooler_output))

    def input_embeddings(self, input_ids: Tensor, image_features: Tensor) -> Tensor:
        """Token embeddings with the image tokens replaced by the features of their image.

        Args:
            input_ids: ``[batch, tokens]`` with the image tokens repeated; padding on either side.
            image_features: ``[batch, image_tokens, hidden]``, one image a row.

        Returns:
            ``[batch, tokens, hidden]``.

        Raises:
            ValueError: the ids do not hold as many image tokens as there are features.
        """
        is_image = input_ids == self.image_token_id  # [batch, tokens]
        count = image_features.shape[0] * image_features.shape[1]
        if int(is_image.sum()) != count:
            raise ValueError(f"{int(is_image.sum())} image tokens cannot take {count} image features")
        embeddings: Tensor = self.model.get_input_embeddings()(input_ids)  # [batch, tokens, hidden]
        return embeddings.masked_scatter(is_image.unsqueeze(-1), image_features.to(embeddings.dtype))


def load_backbone(path: str, dtype: str = "auto", quantisation: str = "none") -> Backbone:
    """Load a frozen LLaVA from a folder, or from the local Hugging Face cache; nothing is fetched from the network.

    Args:
        path: checkpoint folder, or the name of one that has been downloaded, e.g. ``llava-hf/llava-1.5-7b-hf``.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for the checkpoint's own.
        quantisation: ``4bit`` holds the linear layers of the language model in NF4 (QLoRA, Dettmers et al. 2023), on
            the current GPU; vision tower, projector and vocabulary head keep ``dtype``.

    Returns:
        The backbone on the CPU (``move_to`` moves it), in eval mode, dropout 0, without gradients.

    Raises:
        UserError: the checkpoint is not downloaded, not supported or broken; or this machine cannot quantise.
    """
    options = _quantisation_options(dtype) if quantisation == "4bit" else {}
    config, processor = load_config_and_processor(path)
    folder = find_checkpoint(path)
    for section in (config, config.text_config, config.vision_config):
        if hasattr(section, "attention_dropout"):
            section.attention_dropout = 0.0
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with naming_broken_file(lambda: weight_files(path, folder)[0]):
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                path,
                config=config,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
            model, found = loaded  # which transformers' annotations do not say
    finally:
        if bar:
            transformers_logging.enable_progress_bar()
    if found["missing_keys"]:  # they would be drawn at random
        missing = min(found["missing_keys"])
        raise broken(weight_files(path, folder)[0], f"the weights lack {missing}")
    return Backbone(
        path=path,
        model=model.eval().requires_grad_(False),
        processor=processor,
        tokenizer=processor.tokenizer,
        image_token_id=int(config.image_token_id),
        quantised=quantisation == "4bit",
    )


def _quantisation_options(dtype: str) -> dict[str, Any]:
    """Keywords of ``from_pretrained`` for a model in 4 bits.

    Raises:
        UserError: bitsandbytes or a GPU is missing.
    """
    missing = [
        name
        for name, is_there in (
            ("an NVIDIA GPU", torch.cuda.is_available()),
            ("the package bitsandbytes", importlib.util.find_spec("bitsandbytes") is not None),
        )
        if not is_there
    ]
    if missing:
        raise UserError(
            f"rewards.quantisation=4bit needs {' and '.join(missing)}: provide what is missing, or set it to none."
        )
    compute = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
            llm_int8_skip_modules=["vision_tower", "multi_modal_projector", "lm_head"],
        ),
        "device_map": {"": torch.cuda.current_device()},
    }


def banned_token_ids(backbone: Backbone) -> list[int]:
    """Ids that must never be sampled: they would break the image merge, or stand for no text.

    The image, padding and unknown tokens, and rows of the vocabulary head that no token uses (checkpoints pad
    it); never the EOS token, even where a tokenizer pads with it.
    """
    tokenizer = backbone.tokenizer
    rows = int(backbone.model.get_output_embeddings().weight.shape[0])
    banned = {backbone.image_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id, *range(len(tokenizer), rows)}
    return sorted(banned - {None, tokenizer.eos_token_id})
