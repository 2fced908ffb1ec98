"""A backbone that has shapes and no content, for which passes of any architecture are counted.

transformers builds it from a ``config.json`` on torch's meta device. The policy and the reward models take it as they
take one with weights, their own code runs on it, and what torch allocates meanwhile is counted. No weight is read,
nothing is downloaded, and a model of 7 billion parameters takes some seconds.
"""

import copy
import functools
import inspect
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import torch
import torch.fx.experimental._config
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from fgaif_ray.cluster.allocations import FUSED_ATTENTION, Allocations
from fgaif_ray.errors import UserError
from fgaif_ray.pixel_budget import UNLIMITED, PixelBudget
from fgaif_ray.vlm.backbone import IMAGES_PER_PASS, PIXELS_PER_PASS, Backbone
from fgaif_ray.vlm.image_features import ImageFeatures, count_features, split_features
from fgaif_ray.vlm.inputs import EncodedPrompt, RowInputs, image_batches

NF4_BYTES: Final = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight in 4 bits: half a byte, a byte for each block of 64, and a float32 for each 256 of those blocks (QLoRA,
Dettmers et al. 2023, section 3: double quantisation)."""
PICTURE: Final = (640, 480)
"""Width and height of the image that is planned for where a model takes images of any size: COCO's."""
LARGEST_SHAPE: Final = tuple(16 * side for side in PICTURE)
"""The same shape with more pixels than are decoded."""
LARGEST_IMAGE_TOKENS: Final = 16_384
"""What the processors of Qwen2-VL to Qwen3-VL make of the largest image that they take, as they are published."""
PROMPT_TOKENS: Final = 64
"""Of a prompt beside its images."""
FAILURES: Final = (ValueError, AttributeError, KeyError, TypeError, RuntimeError, ImportError, AssertionError, OSError)

_fx_config: Any = torch.fx.experimental._config


class UncountableModelError(Exception):
    """A model cannot be counted; the message is a phrase that says why, and what makes it countable."""


class PassMemory(NamedTuple):
    """What a pass takes beside the model, in bytes."""

    kept: int
    """Of what stays: the states of a forward pass for its backward pass, or the features of images."""
    peak: int
    """Of all that is there at once, those that are kept among them."""


class MetaBackbone(Backbone):
    """A backbone on the meta device; ``dry_run`` builds one."""

    def __init__(self, name: str, config: Any, dtype: str, budget: PixelBudget = UNLIMITED) -> None:
        """Builds the model; see ``dry_run``."""
        options = {"dtype": getattr(torch, dtype), "attn_implementation": FUSED_ATTENTION, "trust_remote_code": False}
        with torch.device("meta"):
            try:
                model: Any = AutoModelForImageTextToText.from_config(config, **options)
            except ValueError:  # a model without images
                model = AutoModelForCausalLM.from_config(config, **options)
        front_end: Any = SimpleNamespace(path=name, eos_token_id=0, banned_token_ids=())
        super().__init__(front_end, model.eval().requires_grad_(False))
        self.dtype = dtype
        self.parameters = sum(tensor.numel() for tensor in self.model.parameters())
        """Of the model alone: adapters come later."""
        self._weights, self._buffers = tensor_bytes(self.model.parameters()), tensor_bytes(self.model.buffers())
        self._linear = [one for one in self.decoder.modules() if isinstance(one, nn.Linear)]
        self._layer = max(tensor_bytes(one.parameters()) for one in self.decoder.layers)
        self.vocabulary = int(model.get_output_embeddings().weight.shape[0])
        self.positions = int(getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 30)
        inputs, prompt_tokens, largest = _image_inputs(name, config, model, planned_picture(budget))
        # Whole numbers, such as grids, keep their content: towers decide by it.
        self._inputs = {n: one.to("meta", model.dtype) if one.is_floating_point() else one for n, one in inputs.items()}
        self._image, self._features = PassMemory(0, 0), 0
        if inputs:
            with suppress(UncountableModelError):  # only its processor knows in what form it takes images
                self._image, self._features = self._count_image()
        tokens = prompt_tokens or self._features
        self.image_tokens = tokens if tokens or not hasattr(config, "vision_config") else None
        """Tokens that an image takes of a prompt; None where it is not known."""
        self.largest_image_tokens = largest or tokens
        """The same of the largest image that the model's processor takes."""

    def copy(self) -> "MetaBackbone":
        """Return another one with a model of its own, for adapters to go into."""
        found = copy.copy(self)
        found.model = copy.deepcopy(self.model)
        return found

    def states(self, rows: RowInputs, _features: Sequence[ImageFeatures]) -> Tensor:
        """Run the decoder alone: which positions are an image's is content."""
        embeddings = self.model.get_input_embeddings()(rows.input_ids)
        if self._inputs:
            places = (rows.input_ids == 0)[..., None].expand_as(embeddings)
            embeddings = embeddings.masked_scatter(places, embeddings)
        states: Tensor = self.decoder(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        return states

    def _image_positions(self, _rows: RowInputs, _prompts: Sequence[EncodedPrompt]) -> Tensor | None:
        return None  # content, too

    @contextmanager
    def counted(self, model: nn.Module | None = None, *inputs: Tensor) -> Iterator[Allocations]:
        """Count what is allocated while the block runs.

        Args:
            model: its parameters, with their gradients, are there before; None stands for the backbone's own model.
            inputs: likewise.

        Raises:
            UncountableModelError: the block's code needs more than shapes.
        """
        model = self.model if model is None else model
        own = [*inputs, *model.parameters(), *model.buffers()]
        own += [one.grad for one in model.parameters() if one.grad is not None]
        # Masks are taken to be true everywhere: towers that leave out empty images find none, rows have no padding.
        shapes_alone = _fx_config.patch(meta_nonzero_assume_all_nonzero=True)
        with phrased(f"a pass through {self.path} cannot be counted"), shapes_alone, Allocations(own) as made:
            yield made

    def prompt(self, images: int) -> EncodedPrompt:
        """A prompt with so many images."""
        return EncodedPrompt(
            input_ids=(0,) * (PROMPT_TOKENS + images * (self.image_tokens or 0)),
            token_types={},
            image_inputs={name: torch.cat([one] * images) for name, one in self._inputs.items()},
            image_tokens=images * self._features,
        )

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

    def prompts_per_pass(self, images: int = 1) -> int:
        """How many prompts of so many images go through the vision tower together."""
        return len(image_batches([self.prompt(images)] * IMAGES_PER_PASS, IMAGES_PER_PASS, PIXELS_PER_PASS)[0])

    def _count_image(self) -> tuple[PassMemory, int]:
        """The pass of one image, and its features."""
        with torch.no_grad(), self.counted(None, *self._inputs.values()) as made:
            output = self.model.get_image_features(**self._inputs, return_dict=True)
            tokens = count_features(output)
            [features] = split_features(output, [tokens])
        return PassMemory(features.planes.nbytes, made.peak + tensor_bytes(self._inputs.values())), tokens

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
        ends = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        return max(3 * self._layer, 2 * max(tensor_bytes(one.parameters()) for one in ends) + self._layer)

    def slot_bytes(self, rank: int) -> int:
        """Of room for an adapter on all linear layers of the decoder, in the model's dtype."""
        sides = sum(one.in_features + one.out_features for one in self._linear)
        return int(self.model.dtype.itemsize) * rank * sides

    def prefill_peak(self, tokens: int) -> int:
        """The most that a vLLM engine's largest pass takes: of so many tokens, or of the images that it tries at its
        start, the largest there are, as many as a step has tokens for, whatever the prompts hold.
        """
        with torch.no_grad(), self.counted() as made:
            self.states(meta_rows(1, tokens), ())[:, -1].clone()
        most = max(tokens, self.largest_image_tokens)
        images = math.ceil(most / self.image_tokens) if self.image_tokens else 0
        return max(made.peak, self.image_pass(images, together=images).peak)

    def cache_bytes_per_token(self) -> int:
        """Keys and values of all layers."""
        tokens = 16
        states = torch.empty(1, tokens, self.hidden_size, dtype=self.model.dtype, device="meta")
        with torch.no_grad(), self.counted():
            cache = self.decoder(inputs_embeds=states, use_cache=True).past_key_values
        return sum(int(layer.keys.nbytes + layer.values.nbytes) for layer in cache.layers) // tokens


@functools.lru_cache(maxsize=16)
def dry_run(name: str, dtype: str, *, engine: bool = False, budget: PixelBudget = UNLIMITED) -> MetaBackbone:
    """A backbone to be counted, built once.

    Args:
        name: checkpoint folder, or the name of a model; of either no more than ``config.json`` has to be on this
            machine. Where its processor is there too, that says how many tokens an image takes.
        dtype: of its weights; ``auto`` is its own.
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
    with phrased(f"{name} cannot be built from its config.json"):
        return MetaBackbone(name, config, dtype, budget)


@contextmanager
def phrased(phrase: str) -> Iterator[None]:
    """Turn errors of a model's code into an ``UncountableModelError``: the phrase, and the first line of why."""
    try:
        yield
    except (*FAILURES, UserError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UncountableModelError(f"{phrase}: {reason}") from error


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


def _image_inputs(
    name: str, config: Any, model: Any, picture: tuple[int, int]
) -> tuple[Mapping[str, Tensor], int, int]:
    """What ``get_image_features`` is given of one image; tokens that the processor makes of it, and of the largest
    image that it takes, 0 where they are not known. Without a processor an image is read in patches or as a square.
    """
    vision = getattr(config, "vision_config", None)
    if vision is None:
        return {}, 0, 0
    wanted = inspect.signature(model.get_image_features).parameters
    any_shape, merged = "image_grid_thw" in wanted, getattr(vision, "spatial_merge_size", 2)
    with suppress(*FAILURES):
        processor = AutoProcessor.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        encoded = processor(images=Image.new("RGB", picture), text=processor.image_token, return_tensors="pt")
        size = processor.image_processor.size
        largest = (
            size["longest_edge"] // (vision.patch_size * merged) ** 2 if any_shape and "longest_edge" in size else 0
        )
        return {name: encoded[name] for name in wanted if name in encoded}, len(encoded["input_ids"][0]), largest
    if any_shape:
        columns, rows = (max(1, round(side / (vision.patch_size * merged))) * merged for side in picture)
        pixels = torch.zeros(rows * columns, vision.in_channels * vision.temporal_patch_size * vision.patch_size**2)
        grid = torch.tensor([[1, rows, columns]])
        return {"pixel_values": pixels, "image_grid_thw": grid}, 0, LARGEST_IMAGE_TOKENS
    side = getattr(vision, "image_size", PICTURE[0])
    square = side if isinstance(side, (list, tuple)) else (side, side)
    return {"pixel_values": torch.zeros(1, 3, *square)}, 0, 0


def meta_rows(rows: int, tokens: int) -> RowInputs:
    """Equally long rows."""
    ids = torch.empty(rows, tokens, dtype=torch.int64, device="meta")
    return RowInputs(input_ids=ids, token_types={}, position_ids=None, lengths=ids[:, 0])


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Of all of them."""
    return sum(tensor.nbytes for tensor in tensors)
