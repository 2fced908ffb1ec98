"""The vision-language backbone: a frozen LLaVA with the methods that reward models, policy and critic share.

A LLaVA reads an image as a run of image tokens whose embeddings are replaced by the projected features of the
vision tower. The tower is never trained here, so its features depend only on the image. Callers that read an
image more than once compute them once (``Backbone.image_features``) and merge them into the token
embeddings (``Backbone.input_embeddings``).
"""

import copy
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from fgaif_ray.errors import UserError
from fgaif_ray.vlm.checkpoint import broken, find_checkpoint, naming_broken_file, weight_files
from fgaif_ray.vlm.front_end import FrontEnd, load_front_end


@dataclass(eq=False)
class Backbone:
    """A frozen LLaVA: its front end and its weights.

    Adapters are injected into ``model`` in place, so one backbone serves any number of them.
    """

    front_end: FrontEnd
    model: Any
    """``LlavaForConditionalGeneration``, in eval mode, without gradients."""
    quantised: bool = False
    """Whether the language model's weights are held in 4 bits."""

    @property
    def path(self) -> str:
        """The checkpoint that it was loaded from; it is written into the adapters trained on it."""
        return self.front_end.path

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
        return self.front_end.eos_token_id

    def pixel_values(self, images: Sequence[Image.Image]) -> Tensor:
        """Preprocess RGB images for the vision tower, ``[images, channels, height, width]``, on the model's device."""
        return self.front_end.pixel_values(images).to(self.device, self.model.dtype)

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
        is_image = input_ids == self.model.config.image_token_id  # [batch, tokens]
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
    front_end = load_front_end(path)
    config = copy.deepcopy(front_end.config)
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
    return Backbone(front_end, model.eval().requires_grad_(False), quantised=quantisation == "4bit")


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
