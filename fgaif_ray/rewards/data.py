"""Training data of reward models: labelled responses, split by image, encoded once, batched by length."""

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor

from fgaif_ray.blind import ShownImages
from fgaif_ray.errors import UserError
from fgaif_ray.images import load_images, read_image_file
from fgaif_ray.pixel_budget import UNLIMITED, PixelBudget
from fgaif_ray.records import Feedback
from fgaif_ray.rewards.domain import ImageDomain, fit_domain, pool_features
from fgaif_ray.rewards.encoding import EncodedItem, ScoringItem, encode_item
from fgaif_ray.rewards.fact_counts import labelled_counts
from fgaif_ray.rewards.kinds import COARSE, IGNORED, response_label
from fgaif_ray.rewards.model import SCORING_BATCH
from fgaif_ray.vlm.backbone import Backbone
from fgaif_ray.vlm.group import LearnerGroup
from fgaif_ray.vlm.image_features import ImageFeatures

FEATURE_CACHE_BYTES: Final = 4 << 30
BUCKET_BATCHES: Final = 16
"""Responses are shuffled, and sorted by length within this many batches' worth, before they are cut into batches."""


FactCounts = Mapping[str, tuple[tuple[int, int], ...]]
"""``[segments]`` facts, and how many of them are false, by type; they mean something where the label says that there
are facts."""


@dataclass(frozen=True)
class TrainingResponse:
    """One response with the label codes of its segments, ``[segments]`` for each fact type, or ``IGNORED``."""

    images: tuple[str, ...]
    """Paths or URIs of what it is about."""
    image_sha256: str
    prompt: str
    segments: tuple[str, ...]
    labels: Mapping[str, tuple[int, ...]]
    facts: FactCounts = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """A labelled response as the model reads it."""

    images: tuple[str, ...]
    """Paths or URIs."""
    encoded: EncodedItem
    labels: Mapping[str, tuple[int, ...]]
    image_sha256: str = ""
    facts: FactCounts = field(default_factory=dict)

    def labels_of(self, head: str) -> tuple[int, ...]:
        """Targets of a head: ``[segments]`` class codes or ``IGNORED``; one of them for the coarse head."""
        return (response_label(self.labels),) if head == COARSE else self.labels[head]

    def facts_of(self, head: str) -> tuple[tuple[int, int], ...]:
        """``[segments]`` facts, and how many of them are false; one of each where none were counted."""
        return self.facts.get(head, ((1, 1),) * len(self.encoded.separators))

    @property
    def length(self) -> int:
        """Tokens, image tokens included."""
        return len(self.encoded)


@dataclass(frozen=True)
class RewardData:
    """Training and held-out examples; no image is in both."""

    train: list[Example]
    validation: list[Example]
    counts: Mapping[str, Mapping[str, int]]
    """``{"train" | "validation": {"images", "responses", "segments", "too_long"}}``, and for ``train`` ``planted``: the
    responses that were made (see ``fgaif_ray.rewards.planted``), which the others leave out."""


def from_feedback(rows: Iterable[Feedback], types: Sequence[str]) -> list[TrainingResponse]:
    """Take what is learnt from the rows of ``feedback/``, by sample id, without rows that have no segments.

    Args:
        rows: of the folder; sampled ids are not needed.
        types: the fact types to learn.

    Raises:
        UserError: the rows have no labels of one of the types.
    """
    known = [row for row in sorted(rows, key=lambda row: row.response.sample_id) if row.segments]
    if known and (missing := [name for name in types if name not in known[0].segments[0].labels]):
        raise UserError(f"feedback/ has no labels of the fact type {missing[0]}: run label with these run.fact_types.")
    return [
        TrainingResponse(
            images=row.response.images,
            image_sha256=row.response.image_sha256,
            prompt=row.response.prompt,
            segments=tuple(segment.text for segment in row.segments),
            labels={name: tuple(_code(segment.labels[name]) for segment in row.segments) for name in types},
            facts={name: tuple(labelled_counts(segment, name) for segment in row.segments) for name in types},
        )
        for row in known
    ]


def _code(label: int | None) -> int:
    return IGNORED if label is None else label


def split_by_image(
    responses: Sequence[TrainingResponse], validation_fraction: float, seed: int
) -> tuple[list[TrainingResponse], list[TrainingResponse]]:
    """Split into training and held-out responses. No image is in both, nor a copy of it under another name.

    Images are ranked by a seeded hash of their content and the first ``validation_fraction`` of them, at
    least one, are held out, so the split depends neither on the order of the rows nor on the machine. Images that
    responses show together, or that have one in common, count as one.

    Raises:
        UserError: fewer than two images.
    """
    group_of = _image_groups(responses)
    images = set(group_of.values())
    if len(images) < 2:
        raise UserError(
            f"feedback/ holds labelled responses to {len(images)} image(s), but one is to train on and one to be "
            "held out: label more images (data.sample_images)."
        )
    ranked = sorted(images, key=lambda image: hashlib.sha256(f"{seed}:{image}".encode()).hexdigest())
    held_out = set(ranked[: min(max(1, round(validation_fraction * len(images))), len(images) - 1)])
    train = [response for response in responses if group_of[response.image_sha256] not in held_out]
    validation = [response for response in responses if group_of[response.image_sha256] in held_out]
    return train, validation


def _image_groups(responses: Sequence[TrainingResponse]) -> dict[str, str]:
    """Return for each digest the least one of its group: those that have an image in common, also by way of others.

    The digest of several images tells nothing of each, so the files of those are read.
    """
    content: dict[str, str] = {}
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]  # half the way for those who come later
            name = parent[name]
        return name

    for response in responses:
        for path in response.images:
            parent[root(f"path {path}")] = root(response.image_sha256)
            if len(response.images) > 1:
                if path not in content:
                    content[path] = _content(path)
                parent[root(content[path])] = root(response.image_sha256)
    least: dict[str, str] = {}
    digests = sorted({response.image_sha256 for response in responses})
    for digest in digests:
        least.setdefault(root(digest), digest)
    return {digest: least[root(digest)] for digest in digests}


def _content(path: str) -> str:
    """The digest of an image file; its path where it cannot be read, which is told when it is opened."""
    try:
        return hashlib.sha256(read_image_file(path)).hexdigest()
    except (OSError, ValueError):
        return f"path {path}"


def prepare_data(
    backbone: Backbone,
    responses: Sequence[TrainingResponse],
    validation_fraction: float,
    seed: int,
    on_progress: Callable[[int], None],
    budget: PixelBudget = UNLIMITED,
    plant: Callable[[Set[str]], Sequence[TrainingResponse]] | None = None,
    shown: ShownImages = tuple,
) -> RewardData:
    """Split responses and encode them.

    Args:
        backbone: the backbone of the reward models.
        responses: labelled ones.
        validation_fraction: share of the images that is held out.
        seed: decides which.
        on_progress: gets the number of responses encoded since its last call.
        budget: images are scaled to it, here and in ``FeatureCache``, which has to be given the same.
        plant: makes more responses to train on, from the digests of the images that are not held out.
        shown: gives the paths to read in place of those of images (see ``fgaif_ray.blind``).

    Raises:
        UserError: fewer than two images, an image that cannot be read, or no response that fits the
        backbone's context.
    """
    parts = dict(zip(("train", "validation"), split_by_image(responses, validation_fraction, seed), strict=True))
    examples: dict[str, list[Example]] = {}
    counts = {}
    for name, part in parts.items():
        examples[name] = _encode(backbone, part, on_progress, budget, shown)
        if not examples[name]:
            raise UserError(
                f"No {name} response fits the {backbone.max_length} tokens that {backbone.path} reads: sample "
                "shorter ones (sample.max_tokens)."
            )
        counts[name] = {
            "images": len({response.image_sha256 for response in part}),
            "responses": len(examples[name]),
            "segments": sum(len(example.encoded.separators) for example in examples[name]),
            "too_long": len(part) - len(examples[name]),
        }
    if plant is not None:
        planted = _encode(backbone, plant({one.image_sha256 for one in parts["train"]}), lambda _: None, budget, shown)
        examples["train"] += planted
        counts["train"]["planted"] = len(planted)
    return RewardData(examples["train"], examples["validation"], counts)


def _encode(
    backbone: Backbone,
    responses: Sequence[TrainingResponse],
    on_progress: Callable[[int], None],
    budget: PixelBudget,
    shown: ShownImages,
) -> list[Example]:
    examples = []
    for response in responses:
        images = shown(response.images)
        item = ScoringItem(load_images(images, budget), response.prompt, response.segments)
        encoded = encode_item(backbone, item)
        if len(encoded) <= backbone.max_length:
            kept = replace(encoded, prompt=encoded.prompt.without_pixels())  # of many images they would fill the memory
            examples.append(Example(images, kept, response.labels, response.image_sha256, response.facts))
        on_progress(1)
    return examples


def make_batches(lengths: Sequence[int], batch_size: int, generator: random.Random) -> list[list[int]]:
    """Yield the indices of one epoch in random batches of similar length.

    Args:
        lengths: ``[examples]`` tokens.
        batch_size: examples of a batch; the last ones may hold fewer.
        generator: its state decides the order.
    """
    order = list(range(len(lengths)))
    generator.shuffle(order)
    bucket = batch_size * BUCKET_BATCHES
    batches = []
    for start in range(0, len(order), bucket):
        similar = sorted(order[start : start + bucket], key=lambda index: lengths[index])
        batches += [similar[first : first + batch_size] for first in range(0, len(similar), batch_size)]
    generator.shuffle(batches)
    return batches


class FeatureCache:
    """Features of the images of prompts, by their paths.

    What makes them is frozen, so the images of a prompt are encoded once and their features kept in host memory, as
    far as ``cache_bytes`` go; the others are encoded at every request (a 7B LLaVA needs 4.5 MiB an image).
    """

    def __init__(
        self, backbone: Backbone, cache_bytes: int = FEATURE_CACHE_BYTES, budget: PixelBudget = UNLIMITED
    ) -> None:
        self._backbone = backbone
        self._budget = budget
        self._room = cache_bytes
        self._kept: dict[tuple[str, ...], ImageFeatures] = {}
        self._pooled: dict[tuple[str, ...], Tensor] = {}
        self.hidden_size = backbone.hidden_size
        """Width of the features."""
        self.encoded = 0
        """Prompts whose images went through the vision tower so far."""

    def __call__(self, images: Sequence[tuple[str, ...]]) -> list[ImageFeatures]:
        """Return the features of images, in order.

        Args:
            images: the paths of those of each prompt.

        Raises:
            UserError: an image cannot be read.
        """
        found = {paths: self._kept[paths] for paths in images if paths in self._kept}
        missing = [paths for paths in dict.fromkeys(images) if paths not in found]
        if missing:
            front_end = self._backbone.front_end
            prompts = [front_end.encode_prompt("", load_images(paths, self._budget)) for paths in missing]
            self.encoded += len(missing)
            for paths, features in zip(missing, self._backbone.image_features(prompts), strict=True):
                found[paths] = features
                self._pooled[paths] = pool_features([features])[0].cpu()
                if features.planes.nbytes <= self._room:
                    self._room -= features.planes.nbytes
                    self._kept[paths] = features.copy_to_host()
        return [found[paths] for paths in images]

    def pooled(self, images: Sequence[tuple[str, ...]]) -> Tensor:
        """Return the means of features over tokens (``domain.pool_features``), ``[prompts, hidden]`` on the CPU.

        They are kept of all images that were encoded, so that hardly any is encoded again.

        Args:
            images: the paths of those of each prompt; at least one.

        Raises:
            UserError: an image cannot be read.
        """
        missing = [paths for paths in images if paths not in self._pooled]
        for start in range(0, len(missing), SCORING_BATCH):
            self(missing[start : start + SCORING_BATCH])
        return torch.stack([self._pooled[paths] for paths in images])


def domain_of(data: RewardData, features: FeatureCache, group: LearnerGroup) -> ImageDomain | None:
    """Fit the domain of reward models to their training images, on all workers; see ``domain.fit_domain``.

    Args:
        data: examples.
        features: of their images.
        group: the workers, each of which encodes a share of the images.
    """
    train, held_out = (
        sorted({example.images for example in part if example.images}) for part in (data.train, data.validation)
    )
    images = [*train, *held_out]
    own = images[group.rank :: group.size]
    pooled = torch.zeros(len(images), features.hidden_size, device=group.device)
    if own:
        pooled[group.rank :: group.size] = features.pooled(own).to(group.device)
    pooled = group.sum(pooled)
    return fit_domain(pooled[: len(train)], pooled[len(train) :])
