"""The vision-language backbone: a frozen LLaVA with the methods that reward models, policy and critic share.

A LLaVA reads an image as a run of image tokens whose embeddings are replaced by the projected features of the
vision tower. The tower is never trained here, so its features depend only on the image. Callers that read an
image more than once compute them once (``Backbone.image_features``) and merge them into the token
embeddings (``Backbone.input_embeddings``).
"""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from fgaif_ray.errors import UserError

SUPPORTED_MODEL_TYPE: Final = "llava"
PROMPT_CACHE: Final = 4096
"""Prompts whose token ids are remembered."""


@dataclass(eq=False)
class Backbone:
    """A frozen LLaVA with its processor.

    Adapters are injected into ``model`` in place, so one backbone serves any number of them.
    """

    path: str
    """The checkpoint that it was loaded from; it is written into the adapters trained on it."""
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
        """Number of positions of the decoder, image tokens included."""
        return int(self.model.config.text_config.max_position_embeddings)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
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
        """Render the chat template with one image, the prompt, and the opening of the answer.

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
        """Return the token ids of ``prompt_text`` with the image as ONE token, ``[prompt_tokens]``, for vLLM.

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
        """Return the number of image tokens that the processor makes of an image of this size."""
        if image.size not in self._image_tokens:
            blank = Image.new("RGB", image.size)
            encoded = self.processor(images=blank, text=self.processor.image_token)
            self._image_tokens[image.size] = list(encoded["input_ids"][0]).count(self.image_token_id)
        return self._image_tokens[image.size]

    def expanded_prompt_ids(self, prompt: str, image: Image.Image) -> list[int]:
        """Return the token ids of ``prompt_text`` with the image token repeated, ``[prompt_tokens]``, for the model.

        Raises:
            ValueError: the prompt holds the image token.
        """
        ids = self.prompt_ids(prompt)
        place = ids.index(self.image_token_id)
        return ids[:place] + [self.image_token_id] * self.image_token_count(image) + ids[place + 1 :]

    def pixel_values(self, images: Sequence[Image.Image]) -> Tensor:
        """Preprocess RGB images for the vision tower, ``[images, channels, height, width]``, on the model's device."""
        encoded = self.processor.image_processor(images=list(images), return_tensors="pt")
        values: Tensor = encoded["pixel_values"].to(self.device, self.model.dtype)
        return values

    @torch.no_grad()
    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Compute the features of the vision tower after the projector.

        Args:
            pixel_values: ``[images, channels, height, width]``.

        Returns:
            ``[images, image_tokens, hidden]``, without gradients.
        """
        return torch.stack(list(self.model.get_image_features(pixel_values).pooler_output))

    def input_embeddings(self, input_ids: Tensor, image_features: Tensor) -> Tensor:
        """Embed tokens, with the image tokens replaced by the features of their image.

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
        UserError: there is no checkpoint, it is not a LLaVA, or it lacks safetensors weights or a chat template; or
            this machine cannot quantise.
    """
    options = _quantisation_options(dtype) if quantisation == "4bit" else {}
    advice = "give the folder of a LLaVA checkpoint such as llava-hf/llava-1.5-7b-hf"
    if os.path.exists(path) and not os.path.exists(os.path.join(path, "config.json")):
        raise UserError(f"{path} holds no config.json: {advice}.")
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is neither a readable checkpoint folder nor a downloaded model: {advice}, or download the model "
            f"first with `hf download NAME`."
        ) from error
    if config.model_type != SUPPORTED_MODEL_TYPE:
        raise UserError(f"{path} is a {config.model_type!r} model, not a LLaVA that sees images: {advice}.")
    for section in (config, config.text_config, config.vision_config):
        if hasattr(section, "attention_dropout"):
            section.attention_dropout = 0.0
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        processor = AutoProcessor.from_pretrained(path, local_files_only=True)
        model = AutoModelForImageTextToText.from_pretrained(
            path,
            config=config,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=True,
            local_files_only=True,
            **options,
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path} could not be loaded as a LLaVA with safetensors weights: {reason}") from error
    finally:
        if bar:
            transformers_logging.enable_progress_bar()
    if getattr(processor, "chat_template", None) is None:
        raise UserError(f"{path} has no chat template: {advice}, or add a chat_template.jinja to it.")
    return Backbone(
        path=path,
        model=model.eval().requires_grad_(False),
        processor=processor,
        tokenizer=processor.tokenizer,
        image_token_id=int(config.image_token_id),
        quantised=quantisation == "4bit",
    )


def _quantisation_options(dtype: str) -> dict[str, Any]:
    """Return the keywords of ``from_pretrained`` for a model in 4 bits.

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
    """Return the ids that must never be sampled: they would break the image merge, or stand for no text.

    The image, padding and unknown tokens, and rows of the vocabulary head that no token uses (checkpoints pad
    it); never the EOS token, even where a tokenizer pads with it.
    """
    tokenizer = backbone.tokenizer
    rows = int(backbone.model.get_output_embeddings().weight.shape[0])
    banned = {backbone.image_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id, *range(len(tokenizer), rows)}
    return sorted(banned - {None, tokenizer.eos_token_id})
