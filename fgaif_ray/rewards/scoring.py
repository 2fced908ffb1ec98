"""From requests to dense rewards: image and response checks, segments, reward model batches, composition.

These are plain functions between the wire format (`fgaif_ray.serving.wire`) and the reward models, called by the
service's deployments.
"""

import base64
import binascii
import io
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fgaif_ray.errors import ItemError, NonFiniteScoreError, UserError
from fgaif_ray.images import decode_image, open_images
from fgaif_ray.pixel_budget import UNLIMITED, PixelBudget
from fgaif_ray.records import fingerprint
from fgaif_ray.rewards.composition import RewardOptions, compose_rewards, reward_segments
from fgaif_ray.segments import Span, segment_token_ends, split_segments
from fgaif_ray.serving.wire import MAX_IMAGE_BYTES, ScoredResponse, SegmentReward
from fgaif_ray.token_offsets import Decoder, token_offsets

if TYPE_CHECKING:
    from fgaif_ray.rewards.model import Judged, ScoringItem

logger = logging.getLogger(__name__)

IMAGE_FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Image formats of requests: a few well-maintained decoders, none of which starts another program."""

_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)

TypeProbabilities = dict[str, NDArray[np.float32]]
"""Fact type -> `[segments, classes]`."""
TypeFacts = dict[str, NDArray[np.float32]]
"""Fact type -> `[segments, 2]` expected facts, and false ones where one is; types that are not counted are missing."""
ImageSource = bytes | str
"""An encoded image file, or the path or URI of one. Paths are never taken from an HTTP request: they are those of the
run's own images, and travel instead of what they name."""


class Tokenizer(Decoder, Protocol):
    """A `transformers` tokenizer, as far as it is needed here."""

    def __len__(self) -> int: ...


def image_bytes(field: str) -> bytes:
    """Return the encoded image file in a request's base64 or data URL field.

    Raises:
        ItemError: `image_too_large`, or `invalid_image` for anything but base64, such as URLs and paths.
    """
    match = _DATA_URL.match(field)
    encoded = field[match.end() :] if match else field
    if len(encoded) > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise ItemError("image_too_large", f"the image is larger than {MAX_IMAGE_BYTES} bytes")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        message = "image must be base64 or a data URL (data:image/png;base64,...); URLs and paths are not opened"
        raise ItemError("invalid_image", message) from error


def open_image(data: bytes, budget: PixelBudget = UNLIMITED) -> Image.Image:
    """Decode the image of a request to RGB, scaled to the budget.

    Raises:
        ItemError: `invalid_image`: of another format than IMAGE_FORMATS, damaged, or too many pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS):
            pass
        return decode_image(data, budget)
    except UnidentifiedImageError as error:
        raise ItemError("invalid_image", f"the image is none of {', '.join(IMAGE_FORMATS)}") from error
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ItemError("invalid_image", str(error)) from error


@dataclass(frozen=True, slots=True)
class SegmentedResponse:
    """A response and its segments."""

    text: str
    spans: list[Span]
    token_ids: list[int] | None
    """`[response_tokens]`, as sampled."""

    @property
    def segments(self) -> list[str]:
        """Text of each segment."""
        return [self.text[span.start : span.end] for span in self.spans]


def segment_response(tokenizer: Tokenizer, response: str | None, token_ids: Sequence[int] | None) -> SegmentedResponse:
    """Split a response given as text, as sampled ids, or as both.

    Provided ids take precedence: their decoding is the text, so that segments end on sampled tokens.

    Raises:
        ItemError: `invalid_token_ids` if an id is outside the tokenizer; `response_mismatch` where text and ids
            are of different responses (white space and unfinished characters at the ends aside).
    """
    if token_ids is None:
        text = response or ""
        return SegmentedResponse(text, split_segments(text), None)
    ids = list(token_ids)
    if ids and not 0 <= min(ids) <= max(ids) < len(tokenizer):
        raise ItemError("invalid_token_ids", f"a token id is outside the tokenizer's 0..{len(tokenizer) - 1}")
    decoded = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    text = decoded if isinstance(decoded, str) else "".join(decoded)
    if response is not None and _core(response) != _core(text):
        message = "response is not what response_token_ids decode to with the policy's tokenizer: leave response out"
        raise ItemError("response_mismatch", message)
    return SegmentedResponse(text, split_segments(text), ids)


def _core(text: str) -> str:
    return text.strip().rstrip("\ufffd").rstrip()


def token_ends(tokenizer: Tokenizer, response: SegmentedResponse) -> list[int] | None:
    """Return the index of the sampled token that ends each segment, `[segments]`; None without ids."""
    if response.token_ids is None:
        return None
    return segment_token_ends(response.spans, token_offsets(tokenizer, response.token_ids), response.text)


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


def compose_response(
    response: SegmentedResponse,
    probabilities: Mapping[str, NDArray[np.float32]],
    ends: Sequence[int] | None,
    options: RewardOptions,
    model_version: str,
    facts: Mapping[str, NDArray[np.float32]] | None = None,
) -> ScoredResponse:
    """Join verdicts and segments to the dense reward of a response.

    Args:
        response: its segments.
        probabilities: `[segments, classes]` of each fact type.
        ends: `token_ends` of the response.
        options: weights and choices. The missing-EOS penalty is the trainer's: no finish reason is known here.
        model_version: of the models that gave the probabilities.
        facts: `[segments, 2]` of each fact type, where facts are paid.

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

    def __len__(self) -> int:
        return len(self.items)

    @property
    def file_bytes(self) -> int:
        """Bytes of the image files in it."""
        return sum(len(image) for image in self.images if isinstance(image, bytes))


def make_batch(items: Sequence[tuple[Sequence[ImageSource], str, list[str]]]) -> ScoringBatch:
    """Build a batch of (images, prompt, segments); equal images are sent once."""
    position: dict[ImageSource, int] = {}
    batch_items = [
        BatchItem(tuple(position.setdefault(image, len(position)) for image in images), prompt, segments)
        for images, prompt, segments in items
    ]
    return ScoringBatch(list(position), batch_items)


class Scorer(Protocol):
    """`fgaif_ray.rewards.model.RewardModel`, as far as it is needed here."""

    def judge(self, fact_types: Sequence[str], items: "Sequence[ScoringItem]") -> "Judged": ...


@dataclass(frozen=True, slots=True)
class ItemVerdicts:
    """Verdicts of several reward models on one item."""

    probabilities: TypeProbabilities
    facts: TypeFacts = field(default_factory=dict)


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
                merged = ItemVerdicts(merged.probabilities | outcome.probabilities, merged.facts | outcome.facts)
        outcomes.append(failed or merged)
    return ScoredBatch(versions, outcomes)


def combined_version(versions: Mapping[str, str]) -> str:
    """Return one version for the reward models of all fact types; it changes if any of them does."""
    return fingerprint(dict(versions))[:12]


def score_batches(
    model: Scorer, fact_types: Sequence[str], batches: Sequence[ScoringBatch], budget: PixelBudget = UNLIMITED
) -> list[list[ScoringOutcome]]:
    """Score the batches of several callers in one pass of the model, each image decoded once.

    An item that the model refuses fails alone: if the pass over all items fails, each is scored by itself.

    Returns:
        For each batch, for each item, the verdicts by fact type or why there are none.
    """
    from fgaif_ray.rewards.model import ScoringItem

    opened = _open({image for batch in batches for image in batch.images}, budget)
    outcomes: list[list[ScoringOutcome | None]] = [[None] * len(batch) for batch in batches]
    places: list[tuple[int, int]] = []
    items: list[ScoringItem] = []
    for row, batch in enumerate(batches):
        for column, item in enumerate(batch.items):
            images: list[Image.Image] = []
            for number in item.images:
                image = opened[batch.images[number]]
                if isinstance(image, ItemError):
                    outcomes[row][column] = image
                    break
                images.append(image)
            else:
                places.append((row, column))
                items.append(ScoringItem(images=images, prompt=item.prompt, segments=item.segments))
    for (row, column), outcome in zip(places, _score_items(model, fact_types, items), strict=True):
        outcomes[row][column] = outcome
    return [[outcome for outcome in row if outcome is not None] for row in outcomes]


def _open(images: Collection[ImageSource], budget: PixelBudget) -> dict[ImageSource, Image.Image | ItemError]:
    found: dict[ImageSource, Image.Image | ItemError] = {}
    for path, image in open_images((one for one in images if isinstance(one, str)), budget).items():
        found[path] = ItemError("invalid_image", str(image)) if isinstance(image, UserError) else image
    for data in (one for one in images if isinstance(one, bytes)):
        try:
            found[data] = open_image(data, budget)
        except ItemError as error:
            found[data] = error
    return found


def _score_items(model: Scorer, fact_types: Sequence[str], items: "list[ScoringItem]") -> list[ScoringOutcome]:
    if not items:
        return []
    try:
        found = model.judge(fact_types, items)
    except (ValueError, ArithmeticError, RuntimeError) as error:
        if len(items) > 1:
            return [outcome for item in items for outcome in _score_items(model, fact_types, [item])]
        if isinstance(error, ValueError):
            return [ItemError("not_scorable", str(error))]
        logger.exception("the reward model failed on an item")
        if isinstance(error, ArithmeticError):
            message = "the reward model gave this item a score that is not a number"
            return [NonFiniteScoreError("scoring_failed", message)]
        return [ItemError("scoring_failed", "the reward model failed on this item")]
    return [
        ItemVerdicts(
            *({name: rows[index] for name, rows in part.items()} for part in (found.probabilities, found.facts))
        )
        for index in range(len(items))
    ]


def probe_batch() -> ScoringBatch:
    """Make a small item that every reward model can score, to prove that a forward pass works."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "grey").save(buffer, format="PNG")
    return ScoringBatch([buffer.getvalue()], [BatchItem((0,), "Describe this image.", ["A grey square."])])
