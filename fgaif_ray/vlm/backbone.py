"""The vision-language backbone: a frozen model with the methods that reward models, policy and critic share.

A vision-language model reads an image as a run of image tokens whose embeddings are replaced by features of the image.
What makes these features is never trained here, so they depend only on the image: callers compute them once
(``Backbone.image_features``) and hand them to every pass (``Backbone.states``).

The multimodal model reads them and not its decoder, which would leave out what the family does besides: positions of
images (M-RoPE), features for inner layers (deepstack), masks.
"""

import copy
import functools
import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from fgaif_ray.errors import UserError
from fgaif_ray.vlm.checkpoint import broken, find_checkpoint, naming_broken_file, not_supported, weight_files
from fgaif_ray.vlm.front_end import FrontEnd, load_front_end
from fgaif_ray.vlm.image_features import ImageFeatures, join_features, split_features
from fgaif_ray.vlm.inputs import EncodedPrompt, RowInputs, image_batches, pad_rows

IMAGES_PER_PASS: Final = 64
"""Prompts whose images go through the vision tower together."""
PIXELS_PER_PASS: Final = IMAGES_PER_PASS * 3 * 336 * 336
"""Pixel values that do: those of as many images of LLaVA-1.5."""


@dataclass(eq=False)
class Backbone:
    """A frozen vision-language model: its front end and its weights.

    Adapters are injected into ``model`` in place, so one backbone serves any number of them.
    """

    front_end: FrontEnd
    model: Any
    """Of transformers, for image and text to text; in eval mode, without gradients."""
    quantised: bool = False
    """Whether the decoder's weights are held in 4 bits."""

    @property
    def path(self) -> str:
        """The checkpoint that it was loaded from; it is written into the adapters trained on it."""
        return self.front_end.path

    @property
    def multimodal(self) -> Any:
        """The model without its vocabulary head: ids and image features to ``last_hidden_state``."""
        return self.model.base_model

    @property
    def decoder(self) -> Any:
        """The language model inside, without its vocabulary head."""
        return self.model.get_decoder()

    @property
    def hidden_size(self) -> int:
        """Width of the decoder's hidden states."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def max_length(self) -> int:
        """Number of positions of the decoder, image tokens included."""
        return int(self.model.config.get_text_config().max_position_embeddings)

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

    def image_features(self, prompts: Sequence[EncodedPrompt]) -> list[ImageFeatures]:
        """Compute the features of the images of each prompt, those of similar size together."""
        found: dict[int, ImageFeatures] = {}
        for batch in image_batches(prompts, IMAGES_PER_PASS, PIXELS_PER_PASS):
            features = self.features_of_batch([prompts[index] for index in batch])
            found |= dict(zip(batch, features, strict=True))
        return [found[index] for index in range(len(prompts))]

    @torch.no_grad()
    def features_of_batch(self, prompts: Sequence[EncodedPrompt]) -> list[ImageFeatures]:
        """Compute the features of the images of each prompt in one pass.

        Args:
            prompts: whose image inputs have equal shapes but for their first dimension (``image_batches``).
        """
        inputs = {
            name: self._to_device(torch.cat([prompt.image_inputs[name] for prompt in prompts]))
            for name in self._image_arguments
            if name in prompts[0].image_inputs
        }
        output = self.model.get_image_features(**inputs, return_dict=True)
        return split_features(output, [prompt.image_tokens for prompt in prompts])

    def rows(self, prompts: Sequence[EncodedPrompt], continuations: Sequence[Sequence[int]]) -> RowInputs:
        """Put prompts and the text that follows them side by side, as ``states`` reads them, on the model's device.

        Args:
            prompts: at least one.
            continuations: ``[rows]`` token ids.
        """
        rows = pad_rows(prompts, continuations, self.eos_token_id)
        positions = self._image_positions(rows, prompts)
        return replace(rows, position_ids=positions).to(self.device)

    def states(self, rows: RowInputs, features: Sequence[ImageFeatures]) -> Tensor:
        """Compute the decoder's last states, ``[rows, tokens, hidden]``.

        Args:
            rows: on the model's device.
            features: of the images of each row.

        Raises:
            ValueError: the rows do not hold as many image tokens as there are features.
        """
        states: Tensor = self.multimodal(**self.arguments(rows, features), use_cache=False).last_hidden_state
        return states

    def arguments(self, rows: RowInputs, features: Sequence[ImageFeatures]) -> dict[str, Any]:
        """The arguments of the multimodal model for a pass; see ``states``."""
        encoded = join_features([one.to(self.device) for one in features])
        found = {"input_ids": rows.input_ids, "mm_encoder_outputs": encoded, "position_ids": rows.position_ids}
        return found | {name: types for name, types in rows.token_types.items() if name in self._arguments}

    def _image_positions(self, rows: RowInputs, prompts: Sequence[EncodedPrompt]) -> Tensor | None:
        """Positions where the family gives images their own, ``[axes, rows, tokens]``; computed once, on the CPU.

        Every pass would otherwise find them again, token by token.
        """
        positions_of = getattr(self.multimodal, "get_rope_index", None)
        if positions_of is None:
            return None
        names = inspect.signature(positions_of).parameters
        grids = {
            name: torch.cat([prompt.image_inputs[name] for prompt in prompts])
            for name in prompts[0].image_inputs
            if name in names
        }
        types = {name: types for name, types in rows.token_types.items() if name in names}
        found: Tensor = positions_of(rows.input_ids, **types, **grids)[0]
        return found

    @functools.cached_property
    def _image_arguments(self) -> tuple[str, ...]:
        return tuple(inspect.signature(self.multimodal.get_image_features).parameters)

    @functools.cached_property
    def _arguments(self) -> frozenset[str]:
        return frozenset(inspect.signature(self.multimodal.forward).parameters)

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.model.dtype if tensor.is_floating_point() else None)


def load_backbone(
    path: str, dtype: str = "auto", quantisation: str = "none", template: Mapping[str, Any] | None = None
) -> Backbone:
    """Load a frozen vision-language model from a folder, or from the local Hugging Face cache.

    Nothing is fetched from the network.

    Args:
        path: checkpoint folder, or the name of one that has been downloaded, e.g. ``llava-hf/llava-1.5-7b-hf``.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for the checkpoint's own.
        quantisation: ``4bit`` holds the linear layers of the decoder in NF4 (QLoRA, Dettmers et al. 2023), on the
            current GPU; all other layers keep ``dtype``.
        template: variables for the chat template.

    Returns:
        The backbone on the CPU (``move_to`` moves it), in eval mode, dropout 0, without gradients.

    Raises:
        UserError: the checkpoint is not downloaded, not supported or broken; or this machine cannot quantise.
    """
    front_end = load_front_end(path, template)
    config = copy.deepcopy(front_end.config)
    skeleton = build_skeleton(path, config)
    options = _quantisation_options(dtype, skeleton) if quantisation == "4bit" else {}
    folder = find_checkpoint(path)
    for section in (config, *(getattr(config, name) for name in config.sub_configs)):
        if hasattr(section, "attention_dropout"):
            section.attention_dropout = 0.0
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with naming_broken_file(lambda: weight_files(path, folder)[0]):
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                path,
                config=config,
                trust_remote_code=False,
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


def build_skeleton(path: str, config: Any) -> Any:
    """Build a model without weights, and look at its class: it must take the features of images beside ids.

    Raises:
        UserError: it does not, or transformers has no such class.
    """
    try:
        with torch.device("meta"):
            model: Any = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise not_supported(path, str(error).splitlines()[0]) from error
    takes = inspect.signature(model.base_model.forward).parameters
    if not hasattr(model.base_model, "get_image_features") or "mm_encoder_outputs" not in takes:
        raise not_supported(path, f"transformers' {type(model).__name__} does not take features of images")
    return model


def _quantisation_options(dtype: str, skeleton: Any) -> dict[str, Any]:
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
    inside = set(skeleton.get_decoder().modules())
    linear = ((name, module) for name, module in skeleton.named_modules() if isinstance(module, nn.Linear))
    kept = [name for name, module in linear if module not in inside]
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
            llm_int8_skip_modules=kept,
        ),
        "device_map": {"": torch.cuda.current_device()},
    }
