"""From prepared requests to dense rewards: reward model batches, composition.

These are plain functions between what has been prepared (`fgaif_ray.rewards.preparation`) and the reward models, called
by the service's deployments.
"""

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fgaif_ray.errors import ItemError, NonFiniteScoreError, UserError
from fgaif_ray.images import decode_image, open_images
from fgaif_ray.pixel_budget import UNLIMITED, PixelBudget
from fgaif_ray.records import fingerprint
from fgaif_ray.rewards.composition import RewardOptions, compose_rewards, reward_segments
from fgaif_ray.rewards.domain import is_outside, largest_distance
from fgaif_ray.rewards.encoding import EncodedItem, ScoringItem
from fgaif_ray.rewards.judged import Judged
from fgaif_ray.rewards.preparation import ImageSource, SegmentedResponse
from fgaif_ray.serving.wire import ScoredResponse, SegmentReward

logger = logging.getLogger(__name__)

PROBE_PROMPT: Final = "Describe this image."
PROBE_RESPONSE: Final = "A grey square."
"""What is scored to prove that a forward pass works, of one segment."""

TypeProbabilities = dict[str, NDArray[np.float32]]
"""Fact type -> `[segments, classes]`."""
TypeFacts = dict[str, NDArray[np.float32]]
"""Fact type -> `[segments, 2]` expected facts, and false ones where one is; types that are not counted are missing."""


@dataclass(frozen=True, slots=True)
class ResponseVerdicts:
    """What the reward models say about one response; no reward has been made of it yet.

    Whoever has a use for the reward composes it, once, with weights of its own: the gateway for HTTP clients
    (``compose_response``), the learner for its trajectories (``fgaif_ray.rl.trajectories.reward_trajectory``).
    """

    response: SegmentedResponse
    token_ends: list[int] | None
    """`[segments]` index of the sampled token that ends each segment; None where no ids were given."""
    probabilities: TypeProbabilities
    model_version: str
    """Of the models that gave the probabilities."""
    facts: TypeFacts = field(default_factory=dict)
    domain_distance: float | None = None
    """How far the images are from those that the models were trained on, in units of the threshold; None where the
    models do not know, or the response has no segments."""

    @property
    def out_of_domain(self) -> bool | None:
        """Whether the images are unlike those of training."""
        return is_outside(self.domain_distance)


def compose_response(
    response: SegmentedResponse,
    probabilities: Mapping[str, NDArray[np.float32]],
    ends: Sequence[int] | None,
    options: RewardOptions,
    model_version: str,
    facts: Mapping[str, NDArray[np.float32]] | None = None,
    domain_distance: float | None = None,
) -> ScoredResponse:
    """Join verdicts and segments to the dense reward of a response.

    Args:
        response: its segments.
        probabilities: `[segments, classes]` of each fact type.
        ends: `token_ends` of the response.
        options: weights and choices. The missing-EOS penalty is the trainer's: no finish reason is known here.
        model_version: of the models that gave the probabilities.
        facts: `[segments, 2]` of each fact type, where facts are paid.
        domain_distance: of the images from those of training, where it is known.

    Raises:
        ValueError: probabilities are not finite or of another shape, or facts are paid and not counted.
    """
    tensor = stacked(probabilities, options.types)  # [segments, types, classes]
    counts = stacked(facts, options.types) if facts else None  # [segments, types, 2]
    per_type = reward_segments(tensor, options, counts)  # [segments, types]
    totals = per_type.sum(dim=1).tolist()
    triples = {fact_type: probabilities[fact_type].tolist() for fact_type in options.types}
    segments = [
        SegmentReward(
            start=span.start,
            end=span.end,
            token_end=None if ends is None else ends[index],
            probabilities={fact_type: triples[fact_type][index] for fact_type in options.types},
            rewards=dict(zip(options.types, values, strict=True)),
            reward=totals[index],
            facts={name: tuple(numbers[index].tolist()) for name, numbers in facts.items()} if facts else None,
        )
        for index, (span, values) in enumerate(zip(response.spans, per_type.tolist(), strict=True))
    ]
    per_token: list[float] | None = None
    if ends is not None and response.token_ids is not None:
        length = len(response.token_ids)
        places = torch.tensor(ends, dtype=torch.int64)  # [segments]
        per_token = (
            compose_rewards(tensor, places, length, "stop", options, counts).per_token.tolist() if length else []
        )
    return ScoredResponse(
        response=response.text,
        segments=segments,
        reward=sum(totals),
        token_rewards=per_token,
        model_version=model_version,
        out_of_domain=is_outside(domain_distance),
        domain_distance=domain_distance,
    )


def stacked(by_type: Mapping[str, NDArray[np.float32]], types: Sequence[str]) -> torch.Tensor:
    """Join arrays by type, ``[segments, ...]`` each, to one ``[segments, types, ...]``."""
    return torch.from_numpy(np.stack([by_type[name] for name in types], axis=1))


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One item of a `ScoringBatch`."""

    images: tuple[int, ...]
    """Indices into the batch's images."""
    prompt: str
    segments: list[str]


@dataclass(frozen=True, slots=True)
class ScoringBatch:
    """A message to a reward model's process, with each image once."""

    images: list[ImageSource]
    items: list[BatchItem]
    size: int
    """What it counts for where batches are merged: its items, or more of them where its images are large."""

    def __len__(self) -> int:
        return len(self.items)

    @property
    def file_bytes(self) -> int:
        """Bytes of the image files in it."""
        return sum(len(image) for image in self.images if isinstance(image, bytes))


def make_batch(items: Sequence[tuple[Sequence[ImageSource], str, list[str]]], size: int = 0) -> ScoringBatch:
    """Build a batch of (images, prompt, segments); equal images are sent once.

    Args:
        items: in order.
        size: what it counts for, if that is more than its items.
    """
    position: dict[ImageSource, int] = {}
    batch_items = [
        BatchItem(tuple(position.setdefault(image, len(position)) for image in images), prompt, segments)
        for images, prompt, segments in items
    ]
    return ScoringBatch(list(position), batch_items, max(size, len(batch_items)))


class Scorer(Protocol):
    """`fgaif_ray.rewards.model.RewardModel`, as far as it is needed here."""

    def encode(self, item: ScoringItem) -> EncodedItem | None: ...

    def judge_encoded(self, fact_types: Sequence[str], items: Sequence[EncodedItem | None]) -> Judged: ...


@dataclass(frozen=True, slots=True)
class ItemVerdicts:
    """Verdicts of several reward models on one item."""

    probabilities: TypeProbabilities
    facts: TypeFacts = field(default_factory=dict)
    domain_distance: float | None = None
    """See ``ResponseVerdicts``."""


ScoringOutcome = ItemVerdicts | ItemError
"""The outcome of one item."""


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """A reward deployment's answer to a batch."""

    versions: dict[str, str]
    """Fact type -> version of the model that was asked."""
    outcomes: list[ScoringOutcome]
    """One per item, in order."""


def merge_verdicts(parts: Sequence[ScoredBatch]) -> ScoredBatch:
    """Join the answers of several deployments on one batch; an item that one of them could not score has no result."""
    versions = {fact_type: version for part in parts for fact_type, version in part.versions.items()}
    outcomes: list[ScoringOutcome] = []
    for row in zip(*(part.outcomes for part in parts), strict=True):
        merged = ItemVerdicts({})
        failed: ItemError | None = None
        for outcome in row:
            if isinstance(outcome, ItemError):
                failed = outcome
            else:
                merged = ItemVerdicts(
                    merged.probabilities | outcome.probabilities,
                    merged.facts | outcome.facts,
                    largest_distance((merged.domain_distance, outcome.domain_distance)),
                )
        outcomes.append(failed or merged)
    return ScoredBatch(versions, outcomes)


def combined_version(versions: Mapping[str, str]) -> str:
    """Return one version for the reward models of all fact types; it changes if any of them does."""
    return fingerprint(dict(versions))[:12]


def score_batches(
    model: Scorer, fact_types: Sequence[str], batches: Sequence[ScoringBatch], budget: PixelBudget = UNLIMITED
) -> list[list[ScoringOutcome]]:
    """Score the batches of several callers in one pass of the model.

    An item fails alone, whatever is wrong with it: each is encoded by itself before the pass over those that could be,
    and if the pass fails, each is scored by itself. An image file is decoded once for all items that show it, and is
    kept no longer.

    Returns:
        For each batch, for each item, the verdicts by fact type or why there are none.
    """
    outcomes: dict[tuple[int, int], ScoringOutcome] = {}
    readable: dict[tuple[int, int], EncodedItem | None] = {}
    for place, encoded in _encode_items(model, batches, budget):
        if isinstance(encoded, ItemError):
            outcomes[place] = encoded
        else:
            readable[place] = encoded
    places = sorted(readable)
    outcomes |= zip(places, _judge_items(model, fact_types, [readable[place] for place in places]), strict=True)
    return [[outcomes[row, column] for column in range(len(batch))] for row, batch in enumerate(batches)]


def _encode_items(
    model: Scorer, batches: Sequence[ScoringBatch], budget: PixelBudget
) -> Iterator[tuple[tuple[int, int], EncodedItem | ItemError | None]]:
    """Yield the place of each item and what the model reads of it."""
    by_images: dict[tuple[ImageSource, ...], list[tuple[int, int]]] = {}
    for row, batch in enumerate(batches):
        for column, item in enumerate(batch.items):
            by_images.setdefault(tuple(batch.images[number] for number in item.images), []).append((row, column))
    # Those of the run itself, which may come from far away, are read together.
    read = open_images((one for images in by_images for one in images if isinstance(one, str)), budget)
    for sources, places in by_images.items():
        images = _open_all(sources, read, budget)
        for row, column in places:
            item = batches[row].items[column]
            yield (row, column), images if isinstance(images, ItemError) else _encode_item(model, images, item)


def _open_all(
    sources: Sequence[ImageSource], read: Mapping[str, Image.Image | UserError], budget: PixelBudget
) -> list[Image.Image] | ItemError:
    """The images of an item, or why one of them cannot be seen."""
    opened: list[Image.Image] = []
    for source in sources:
        try:
            image = read[source] if isinstance(source, str) else decode_image(source, budget)
        except Exception as error:  # whatever a decoder stumbles over in a damaged file
            return ItemError("invalid_image", str(error))
        if isinstance(image, UserError):
            return ItemError("invalid_image", str(image))
        opened.append(image)
    return opened


def _encode_item(model: Scorer, images: Sequence[Image.Image], item: BatchItem) -> EncodedItem | ItemError | None:
    try:
        return model.encode(ScoringItem(images=images, prompt=item.prompt, segments=item.segments))
    except ValueError as error:
        return ItemError("not_scorable", str(error))
    except Exception:
        logger.exception("an item cannot be read")
        return ItemError("scoring_failed", "the reward model cannot read this item")


def _judge_items(model: Scorer, fact_types: Sequence[str], items: Sequence[EncodedItem | None]) -> list[ScoringOutcome]:
    if not items:
        return []
    try:
        found = model.judge_encoded(fact_types, items)
    except Exception as error:
        if len(items) > 1:
            return [outcome for item in items for outcome in _judge_items(model, fact_types, [item])]
        logger.exception("the reward model failed on an item")
        if isinstance(error, ArithmeticError):
            message = "the reward model gave this item a score that is not a number"
            return [NonFiniteScoreError("scoring_failed", message)]
        return [ItemError("scoring_failed", "the reward model failed on this item")]
    return [
        ItemVerdicts(
            {name: rows[index] for name, rows in found.probabilities.items()},
            {name: rows[index] for name, rows in found.facts.items()},
            found.domain_distances[index] if found.domain_distances else None,
        )
        for index in range(len(items))
    ]


def probe_batch() -> ScoringBatch:
    """Make a small item that every reward model can score, to prove that a forward pass works."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "grey").save(buffer, format="PNG")
    return make_batch([([buffer.getvalue()], PROBE_PROMPT, [PROBE_RESPONSE])])
