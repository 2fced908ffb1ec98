"""Sections of the images and of sampling."""

from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from fgaif_ray.config.base import EngineConfig, Section
from fgaif_ray.pixel_budget import MAX_PIXELS, SMALLEST_BUDGET, PixelBudget
from fgaif_ray.prompts import count_places, messages_of


class ColumnNames(Section):
    """Names of the columns of ``data.source: rows`` and ``dataset``."""

    image: str = "image"
    """The image of a row, or the list of its images."""
    prompt: str | None = "prompt"
    """None: the rows have no prompts of their own, ``data.prompts`` are asked."""
    response: str | None = "response"
    """Responses that are labelled as they are; the column may be missing. None: every row is sampled."""


class ShapesConfig(Section):
    """Scenes that the embedded world draws (``data.source: shapes``)."""

    evaluate_split: Literal["heldout", "unseen_pairs", "fog"] = "heldout"
    """Scenes that evaluation asks about: like those of training, with shape-colour pairs that occur in no other scene,
    or with fog."""
    augmented: float = Field(default=0.0, ge=0, le=1)
    """Share of the training images (to label and for PPO) with another brightness and contrast, and noise."""


class BlindConfig(Section):
    """A control: what is shown in place of the images. ``swapped`` is another image of the same set, ``blank`` a grey
    one of the same size.
    """

    rewards: Literal["none", "swapped", "blank"] = "none"
    """To the reward models, when they are trained and when the run asks them. The policy and the verifiers see."""
    policy: Literal["none", "swapped", "blank"] = "none"
    """To the policy while it is aligned. It sees when it is sampled to be labelled, and when it is evaluated."""


class DataConfig(Section):
    """The images and prompts that the policy answers."""

    source: Literal["folder", "coco", "rows", "dataset", "shapes"] = "folder"
    """``folder``: images below ``path``. ``coco``: those of them that ``annotations`` names. ``rows``: JSON lines or
    Parquet with columns of images, prompts and, where they are there, responses. ``dataset``: such columns in a Hugging
    Face dataset. ``shapes``: the embedded world draws its own."""
    path: str | None = None
    """Image folder (``folder``, ``coco``), file or folder of files (``rows``), folder or name (``dataset``); a local
    path, or a URI that fsspec knows, e.g. ``s3://bucket/images``. With ``shapes`` the folder that scenes are drawn
    into, which runs can share; None is the run's own."""
    annotations: str | None = None
    """COCO file with the list of images, e.g. ``instances_train2014.json``."""
    split: str | None = None
    """Split of a dataset, e.g. ``train``; None takes the only one."""
    columns: ColumnNames = ColumnNames()
    images_outside_path: bool = False
    """Whether the rows of ``rows`` and ``dataset`` may name images that are not below the folder of ``path``: any file
    that this user can read, and any URI of object storage."""
    shapes: ShapesConfig = ShapesConfig()
    sample_images: int = Field(default=3500, ge=1)
    """Images whose responses are labelled to train the reward models (FGAIF section 4.1: 3,500)."""
    align_images: int = Field(default=14000, ge=1)
    """Images of PPO, disjoint from the former (FGAIF section 4.1: 14,000)."""
    evaluate_images: int = Field(default=500, ge=1)
    """Held-out images of the evaluation."""
    images_per_prompt: int = Field(default=1, ge=1)
    """The most images of a prompt; rows with more are rejected. Engines keep room for as many."""
    prompts: tuple[str, ...] = Field(default=("Describe this image in detail.",), min_length=1)
    """Prompts; each image gets one, in turn. Rows with prompts of their own ask those instead."""
    max_pixels: int | None = Field(default=None, ge=SMALLEST_BUDGET)
    """Images with more pixels (width times height) are scaled down to it when they are opened, for every model alike:
    the policy, the verifiers and the reward models. None keeps their size."""
    min_pixels: int | None = Field(default=None, ge=SMALLEST_BUDGET, le=MAX_PIXELS)
    """Images with fewer pixels are scaled up to it, in the same way."""

    blind: BlindConfig = BlindConfig()
    """A control, to find out what is learnt without looking at the images (`fgaif experiment blind`)."""
    language: str = Field(default="en", pattern="^[a-z]{2,3}$")
    """ISO 639 code of the language of the responses, whose abbreviations do not end a segment."""
    chat_template_kwargs: dict[str, str | int | float | bool] = {}
    """Variables for the chat templates of all models, e.g. ``{enable_thinking: false}``; a template leaves out what it
    does not know."""

    @property
    def pixel_budget(self) -> PixelBudget:
        """The two limits, as images are opened with them."""
        return PixelBudget(self.min_pixels, self.max_pixels)

    @property
    def pixel_limits(self) -> dict[str, int]:
        """The limits that are set, by key."""
        limits = {"max_pixels": self.max_pixels, "min_pixels": self.min_pixels}
        return {name: limit for name, limit in limits.items() if limit is not None}

    def check_prompt(self, prompt: str, images: int) -> None:
        """Look whether a prompt can be asked about so many images.

        Raises:
            ValueError: it cannot; the message says why.
        """
        if images > self.images_per_prompt:
            raise ValueError(
                f"there are {images} images, more than data.images_per_prompt ({self.images_per_prompt}) allows"
            )
        messages_of(prompt, images)

    def can_ask(self, prompt: str, images: int) -> bool:
        """Whether a prompt can be asked about so many images (see ``check_prompt``)."""
        try:
            self.check_prompt(prompt, images)
        except ValueError:
            return False
        return True

    @field_validator("prompts")
    @classmethod
    def _prompts_can_be_asked(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        most = info.data.get("images_per_prompt", 1)
        for prompt in value:
            messages_of(prompt, min(max(1, count_places(prompt)), most))
        return value

    @model_validator(mode="after")
    def _pixels_are_a_range(self) -> Self:
        if self.min_pixels is not None and self.max_pixels is not None and 2 * self.min_pixels > self.max_pixels:
            raise ValueError(
                "data.max_pixels must be at least twice data.min_pixels: sides are whole pixels, and both must hold"
            )
        return self

    @model_validator(mode="after")
    def _source_has_what_it_needs(self) -> Self:
        if self.source != "shapes" and self.path is None:
            holds = {
                "rows": "the JSON lines or Parquet file, or a folder of them",
                "dataset": "the folder that save_to_disk wrote, or the dataset's name",
            }.get(self.source, "the folder that holds the images")
            raise ValueError(f"data.path is needed with data.source={self.source}: set it to {holds}")
        if (self.annotations is not None) != (self.source == "coco"):
            raise ValueError(
                "data.annotations is needed with data.source=coco: set it to the annotation file, e.g. "
                "instances_train2014.json"
                if self.source == "coco"
                else f"data.annotations is not read with data.source={self.source}: leave it out, or set coco"
            )
        if self.shapes != ShapesConfig() and self.source != "shapes":
            raise ValueError(f"data.shapes is not read with data.source={self.source}: leave it out")
        if self.images_outside_path and self.source not in ("rows", "dataset"):
            raise ValueError(f"data.images_outside_path is not read with data.source={self.source}: leave it out")
        if self.split is not None and self.source != "dataset":
            raise ValueError(f"data.split is not read with data.source={self.source}: leave it out, or set dataset")
        return self


class SampleConfig(Section):
    """Sampling of responses (FGAIF section 4.1: T=1, top_p=1, at most 896 new tokens)."""

    temperature: float = Field(default=1.0, ge=0)
    """Of sampling; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Share of the probability that is sampled from; 1 is all of it."""
    max_tokens: int = Field(default=896, ge=1)
    """The most tokens of a response."""
    samples_per_prompt: int = Field(default=1, ge=1)
    """Responses to each image and prompt, each with a seed of its own; preferences are made of several."""
    shared_prefixes: bool = False
    """Whether every further response to an image and prompt begins with the first segments of the first one, up to a
    segment drawn at random, and goes its own way from there: pairs of segments after the same context
    (``align.algorithm: c-dpo``) then come from anywhere in a response. Without it they come from their beginnings."""
    batch_size: int = Field(default=64, ge=1)
    """Responses that an engine is given at a time."""
    engines: int = Field(default=1, ge=1)
    """Engines, each with the resources of ``engine``."""
    engine: EngineConfig = EngineConfig()
