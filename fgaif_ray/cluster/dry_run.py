"""Passes through a model that has shapes and no content: what they take of a device, whatever the architecture.

The model is built by transformers from its ``config.json`` on torch's meta device, with the adapters and heads that are
trained here; then the passes of a learner or a scorer are run, and what torch allocates is counted. No weight is read,
nothing is downloaded, and a model of 7 billion parameters takes a second.
"""

import functools
import inspect
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.fx.experimental._config
from peft import PeftModel
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from fgaif_ray.cluster.allocations import FUSED_ATTENTION, Allocations, kept_for_backward
from fgaif_ray.config import LoRAOptions
from fgaif_ray.errors import UserError
from fgaif_ray.pixel_budget import UNLIMITED, PixelBudget
from fgaif_ray.rl.policy import checkpoint_layers
from fgaif_ray.vlm.backbone import IMAGES_PER_PASS, PIXELS_PER_PASS
from fgaif_ray.vlm.image_features import count_features, split_features
from fgaif_ray.vlm.inputs import PIXELS
from fgaif_ray.vlm.lora import decoder_lora, with_own_layers

NF4_BYTES: Final = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight in 4 bits: half a byte, a byte for each block of 64, and a float32 for each 256 of those blocks (QLoRA,
Dettmers et al. 2023, section 3: double quantisation)."""
PICTURE: Final = (640, 480)
"""Width and height of the image that is planned for where a model takes images of any size: COCO's."""
LARGEST_SHAPE: Final = tuple(16 * side for side in PICTURE)
"""The same shape with more pixels than are decoded."""
LARGEST_IMAGE_TOKENS: Final = 16_384
"""What the processors of Qwen2-VL to Qwen3-VL make of the largest image that they take, as they are published."""
FAILURES: Final = (ValueError, AttributeError, KeyError, TypeError, RuntimeError, ImportError, AssertionError, OSError)

_fx_config: Any = torch.fx.experimental._config

Head = Callable[[Tensor], Tensor]
"""The decoder's states, ``[positions, hidden]``, to what a loss is made of."""


class UncountableModelError(Exception):
    """A model cannot be counted; the message is a phrase that says why, and what makes it countable."""


@dataclass(frozen=True, slots=True)
class PassMemory:
    """What a pass takes beside the model."""

    kept: int
    """Bytes that the forward pass keeps for the backward pass."""
    peak: int
    """The most bytes that are there at once, those that are kept among them."""

    def then(self, other: "PassMemory") -> "PassMemory":
        """This one's forward pass, both passes of the other, and this one's backward pass."""
        return PassMemory(self.kept + other.kept, max(self.peak, self.kept + other.peak))


class DryRun:
    """A model on the meta device, with adapters on its decoder; ``dry_run`` builds one.

    It is kept as long as the process, and so is what a pass has taken.
    """

    def __init__(
        self, name: str, config: Any, dtype: str, adapters: Mapping[str, LoRAOptions], budget: PixelBudget = UNLIMITED
    ) -> None:
        """Builds the model; see ``dry_run``."""
        self.name, self.dtype = name, dtype
        options = {"dtype": getattr(torch, dtype), "attn_implementation": FUSED_ATTENTION, "trust_remote_code": False}
        with torch.device("meta"):
            try:
                self.model = AutoModelForImageTextToText.from_config(config, **options)
            except ValueError:  # a model without images
                self.model = AutoModelForCausalLM.from_config(config, **options)
            self.model.eval().requires_grad_(False)
            self.decoder: Any = self.model.get_decoder()
            self.parameters = sum(tensor.numel() for tensor in self.model.parameters())
            self._layer = max(_bytes(one) for one in self.decoder.layers)
            self._linear = [one for one in self.decoder.modules() if isinstance(one, nn.Linear)]
            self._weights, self._buffers = _bytes(self.model), _bytes(self.model, buffers=True)
            self._adapters = self._with_adapters(adapters)
            for parameter in (one for name in adapters for one in self.trained(name)):
                parameter.grad = torch.empty_like(parameter)
        gradients = [one.grad for one in self.model.parameters() if one.grad is not None]
        self._own = [*self.model.parameters(), *self.model.buffers(), *gradients]
        text = config.get_text_config()
        self.hidden = int(text.hidden_size)
        self.vocabulary = int(self.model.get_output_embeddings().weight.shape[0])
        self.positions = int(getattr(text, "max_position_embeddings", None) or 1 << 30)
        image = _image_inputs(name, config, self.model, planned_picture(budget))
        features = 0
        self._image = PassMemory(0, 0)
        if image.inputs:
            with suppress(UncountableModelError):  # only its processor knows in what form it takes images
                self._image, features = self._image_pass(image.inputs)
        tokens = image.prompt_tokens or features
        self.image_tokens = tokens if tokens or not hasattr(config, "vision_config") else None
        """Tokens that an image takes of a prompt; None where it is not known."""
        self.largest_image_tokens = image.largest or self.image_tokens or 0
        """The same of the largest image that the model's processor takes."""
        self._pixels = sum(one.numel() for name, one in image.inputs.items() if name.startswith(PIXELS))

    def weight_bytes(self, quantisation: str = "none", shards: int = 1) -> int:
        """Of the weights without adapters; under ``4bit`` the decoder's linear layers are in NF4.

        Cut up over several processes, what one of them holds: its part of the parameters, and all buffers.
        """
        linear = [one.weight for one in self._linear] if quantisation == "4bit" else []
        saved = sum(weight.numel() * (weight.element_size() - NF4_BYTES) for weight in linear)
        return math.ceil(int(self._weights - saved) / shards) + self._buffers

    def gathered_bytes(self) -> int:
        """What a pass through a sharded model (``fgaif_ray.vlm.sharding``) has of it beside its part: a layer that
        computes, the message it came in, and that of the next; or vocabulary head or embeddings with theirs, and a
        layer's message.
        """
        embeddings = max(map(_bytes, (self.model.get_input_embeddings(), self.model.get_output_embeddings())))
        return max(3 * self._layer, 2 * embeddings + self._layer)

    def largest_parameter(self) -> int:
        """Bytes of the largest tensor."""
        return int(max(tensor.nbytes for tensor in self.model.parameters()))

    def slot_bytes(self, rank: int) -> int:
        """Of room for an adapter on all linear layers of the decoder, in the model's dtype."""
        item = int(getattr(torch, self.dtype).itemsize)
        return item * sum(rank * (one.in_features + one.out_features) for one in self._linear)

    def trained(self, adapter: str) -> list[nn.Parameter]:
        """Parameters of an adapter."""
        return [value for name, value in self.model.named_parameters() if f".{adapter}." in name]

    @functools.cache  # noqa: B019
    def cache_bytes_per_token(self) -> int:
        """Keys and values of all layers."""
        tokens = 16
        with self._counted():
            states = torch.empty(1, tokens, self.hidden, dtype=getattr(torch, self.dtype), device="meta")
            cache = self.decoder(inputs_embeds=states, use_cache=True).past_key_values
            return sum(int(layer.keys.nbytes + layer.values.nbytes) for layer in cache.layers) // tokens

    def prompts_per_pass(self, images: int = 1) -> int:
        """How many prompts of so many images ``Backbone.image_features`` has in one pass."""
        return max(1, min(IMAGES_PER_PASS, PIXELS_PER_PASS // max(1, images * self._pixels)))

    def image_pass(self, prompts: int, images: int = 1, together: int | None = None) -> PassMemory:
        """The images of prompts to features, without gradients; what is kept are the features.

        Args:
            prompts: all of them.
            images: of each prompt.
            together: prompts of a pass; None is what ``prompts_per_pass`` allows.
        """
        together = min(prompts, self.prompts_per_pass(images) if together is None else together)
        kept = prompts * images * self._image.kept
        return PassMemory(kept, kept + together * images * (self._image.peak - self._image.kept))

    @functools.cache  # noqa: B019
    def scoring_pass(self, rows: int, tokens: int, read: int, adapter: str | None = None) -> PassMemory:
        """A pass through the decoder without gradients; see ``training_pass``. Nothing is kept."""
        if adapter is not None:
            self._adapters.set_adapter(adapter)
        with torch.no_grad(), self._counted() as made:
            self._decode(rows, tokens, read)
        return PassMemory(0, made.peak)

    @functools.cache  # noqa: B019
    def training_pass(self, rows: int, tokens: int, read: int, adapter: str, checkpointing: bool = False) -> PassMemory:
        """A forward and a backward pass through the decoder; the gradients of what is trained are not counted.

        Args:
            rows: of a micro-batch, all equally long.
            tokens: of a row, image tokens among them.
            read: tokens of a row whose states a head reads.
            adapter: the one that is trained.
            checkpointing: whether the decoder keeps its layers' inputs alone.
        """
        self._adapters.set_adapter(adapter)
        self.decoder.gradient_checkpointing_disable()
        self.decoder.eval()
        if checkpointing:
            checkpoint_layers(self.decoder)
        with self._counted() as made:
            with kept_for_backward(self._own) as kept:
                states = self._decode(rows, tokens, read)
            states.sum().backward()
        return PassMemory(sum(kept.values()), made.peak)

    def head_pass(self, head: Head, positions: int, training: bool = True) -> PassMemory:
        """What a head takes on top of the decoder.

        Args:
            head: reads states and gives what a loss is made of.
            positions: states that it reads.
            training: whether a backward pass follows.
        """
        dtype = getattr(torch, self.dtype)
        states = torch.empty(positions, self.hidden, dtype=dtype, device="meta", requires_grad=training)
        with torch.set_grad_enabled(training), self._counted() as made:
            with kept_for_backward(self._own) as kept:
                result = head(states)
            if training:
                result.sum().backward()
        return PassMemory(sum(kept.values()), made.peak)

    def _decode(self, rows: int, tokens: int, read: int) -> Tensor:
        """States that a head reads, ``[rows * read, hidden]``."""
        ids = torch.empty(rows, tokens, dtype=torch.int64, device="meta")
        embeddings = self.model.get_input_embeddings()(ids)
        states = self.decoder(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        row_of, places = torch.empty(2, rows * read, dtype=torch.int64, device="meta")
        found: Tensor = states[row_of, places]
        return found

    def _image_pass(self, inputs: Mapping[str, Tensor]) -> tuple[PassMemory, int]:
        """Of one image, and its tokens. Tensors of whole numbers, such as grids, keep their content: towers decide by
        it.
        """
        dtype = getattr(torch, self.dtype)
        inputs = {n: one.to("meta", dtype) if one.is_floating_point() else one for n, one in inputs.items()}
        with torch.no_grad(), self._counted(*inputs.values()) as made:
            output = self.model.get_image_features(**inputs, return_dict=True)
            tokens = count_features(output)
            [features] = split_features(output, [tokens])
        pixels = sum(one.nbytes for one in inputs.values())
        return PassMemory(features.planes.nbytes, made.peak + pixels), tokens

    @contextmanager
    def _counted(self, *inputs: Tensor) -> Iterator[Allocations]:
        try:
            # Towers that leave out empty images ask which are: none is.
            with _fx_config.patch(meta_nonzero_assume_all_nonzero=True), Allocations([*self._own, *inputs]) as made:
                yield made
        except FAILURES as error:
            raise UncountableModelError(f"a pass through {self.name} cannot be counted: {_reason(error)}") from error

    def _with_adapters(self, adapters: Mapping[str, LoRAOptions]) -> Any:
        peft: Any = None
        for name, lora in adapters.items():
            config = with_own_layers(decoder_lora(self.model, lora, self.name))
            if peft is None:
                peft = PeftModel(self.model, config, adapter_name=name)
            else:
                peft.add_adapter(name, config)
        self.model.eval()
        return peft


@functools.lru_cache(maxsize=16)
def dry_run(
    name: str,
    dtype: str,
    *adapters: tuple[str, LoRAOptions],
    engine: bool = False,
    budget: PixelBudget = UNLIMITED,
) -> DryRun:
    """A model to be counted; built once.

    Args:
        name: checkpoint folder, or the name of a model; of either no more than ``config.json`` has to be on this
            machine. Where its processor is there too, that says how many tokens an image takes.
        dtype: of its weights; ``auto`` is its own.
        adapters: names and options of those on the decoder.
        engine: whether vLLM loads it, which halves float32 under ``auto``.
        budget: of the images that it sees, see ``planned_picture``.

    Raises:
        UncountableModelError: there is no configuration here, or it is of no architecture that transformers can build.
    """
    config = _read_config(name)
    if dtype == "auto":
        own = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
        dtype = str(own or "float32").removeprefix("torch.")
        dtype = "bfloat16" if engine and dtype == "float32" else dtype
    try:
        return DryRun(name, config, dtype, dict(adapters), budget)
    except (*FAILURES, UserError) as error:
        raise UncountableModelError(f"{name} cannot be built from its config.json: {_reason(error)}") from error


def _read_config(name: str) -> Any:
    try:
        return AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if os.path.isdir(name) or name.startswith((".", "/")):
            raise UncountableModelError(f"{name} holds no config.json that transformers can read") from error
        raise UncountableModelError(
            f"{name} is not on this machine; `hf download {name} config.json` is enough to count it"
        ) from error


def planned_picture(budget: PixelBudget) -> tuple[int, int]:
    """Width and height of the image that is planned for: the largest of a budget that has a limit, else ``PICTURE``."""
    return budget.size_of(*(PICTURE if budget.max is None else LARGEST_SHAPE))


@dataclass(frozen=True, slots=True)
class _ImageInputs:
    """What ``get_image_features`` is given of one image."""

    inputs: Mapping[str, Tensor]
    """By name; none for a model without images."""
    prompt_tokens: int = 0
    """Tokens of a prompt that its processor makes of the image; 0 without a processor."""
    largest: int = 0
    """Tokens of the largest image that the model takes, where images have any shape."""


def _image_inputs(name: str, config: Any, model: Any, picture: tuple[int, int]) -> _ImageInputs:
    """Without a processor an image is taken to be read in patches or as a square."""
    vision = getattr(config, "vision_config", None)
    if vision is None:
        return _ImageInputs({})
    wanted = inspect.signature(model.get_image_features).parameters
    any_shape = "image_grid_thw" in wanted
    try:
        processor = AutoProcessor.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        encoded = processor(images=Image.new("RGB", picture), text=processor.image_token, return_tensors="pt")
        inputs = {name: encoded[name] for name in wanted if name in encoded}
        size = processor.image_processor.size
        largest = size["longest_edge"] // _token_side(vision) ** 2 if any_shape and "longest_edge" in size else 0
        return _ImageInputs(inputs, len(encoded["input_ids"][0]), largest)
    except FAILURES:
        pass
    if any_shape:
        merged, token = getattr(vision, "spatial_merge_size", 2), _token_side(vision)
        columns, rows = (max(1, round(side / token)) * merged for side in picture)
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        patches = {
            "pixel_values": torch.zeros(rows * columns, width),
            "image_grid_thw": torch.tensor([[1, rows, columns]]),
        }
        return _ImageInputs(patches, largest=LARGEST_IMAGE_TOKENS)
    side = getattr(vision, "image_size", picture[0])
    square = side if isinstance(side, (list, tuple)) else (side, side)
    return _ImageInputs({"pixel_values": torch.zeros(1, 3, *square)})


def _token_side(vision: Any) -> int:
    """Pixels on a side of the square that becomes one token, where images have any shape."""
    return int(vision.patch_size * getattr(vision, "spatial_merge_size", 2))


def _bytes(module: nn.Module, buffers: bool = False) -> int:
    return sum(tensor.nbytes for tensor in (module.buffers() if buffers else module.parameters()))


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
