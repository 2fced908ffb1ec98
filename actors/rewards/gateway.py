"""The gateway of the reward service: the entry to the reward deployments, over HTTP and through a Serve handle."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import ray
from fastapi import FastAPI
from ray import ObjectRef
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from transformers import AutoTokenizer

from actors import metrics
from actors.rewards.http import ServiceError, build_app
from actors.rewards.metrics import record_answer, record_items
from fgaif_ray.errors import ItemError
from fgaif_ray.fact_types import FactType
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.rewards.scoring import (
    ImageSource,
    ResponseVerdicts,
    ScoredBatch,
    ScoringBatch,
    SegmentedResponse,
    combined_version,
    compose_response,
    image_bytes,
    make_batch,
    merge_verdicts,
    open_image,
    probe_batch,
    segment_response,
    token_ends,
)
from fgaif_ray.serving.remote_reward import label_fields, split_query
from fgaif_ray.serving.wire import ModelList, RemoteRewardRequest, RewardItem, RewardRequest, ScoredResponse

logger = logging.getLogger(__name__)
GatewayResult = TypeVar("GatewayResult")

READY_FOR_S: Final = 5.0
"""Seconds for which one forward pass proves the models ready."""
PROBE_TIMEOUT_S: Final = 10.0
INLINE_BYTES: Final = 100 << 10
"""Arguments of a call up to this size travel inside it, larger ones through the object store."""
MAX_REPLICAS_TRIED: Final = 4
"""Replicas that one batch may lose before it is given up, since it may be what kills them."""


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Settings of the gateway's deployment, without the bearer token itself."""

    identity: str
    """Fingerprint of all that the application was deployed with."""
    url: str
    models: ModelList
    tokenizer: str
    """Checkpoint of the policy, whose sampled ids come in."""
    options: RewardOptions
    max_batch_size: int
    max_waiting_items: int
    request_timeout_s: float
    token_digest: str | None
    fact_types: tuple[FactType, ...]


@dataclass(frozen=True, slots=True)
class ItemToScore:
    """An item that passed the checks."""

    images: tuple[ImageSource, ...]
    prompt: str
    response: SegmentedResponse


class RewardGateway:
    """The gateway: it cuts responses into segments, has them scored by the reward deployments, and composes rewards."""

    def __init__(self, settings: GatewaySettings, scorers: Sequence[DeploymentHandle[Any]]) -> None:
        self._settings = settings
        self._scorers = list(scorers)
        self._tokenizer = AutoTokenizer.from_pretrained(settings.tokenizer, local_files_only=True)
        # One thread: the event loop stays free for requests, and the tokenizer is used by one thread at a time.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gateway")
        self._waiting_items = 0
        self._ready_until = 0.0

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(self, self._settings.token_digest, record_answer, self._settings.fact_types)

    def describe(self) -> tuple[str, str]:
        """Return identity and URL of the application."""
        return self._settings.identity, self._settings.url

    def models(self) -> ModelList:
        """Return what is served."""
        return self._settings.models

    async def score_responses(self, items: list[dict[str, Any]]) -> list[ResponseVerdicts | None]:
        """Score a batch of responses for callers inside the cluster, which compose the rewards themselves.

        Args:
            items: `{"image": path or URI, or an encoded image file as bytes, "prompt": str, "response": str | None,
                "response_token_ids": [response_tokens] | None}`, any number of them; `"images"` has a sequence in place
                of `"image"`. Paths are opened by the reward deployments, whose nodes must be able to.

        Returns:
            In order; None where there is no verdict (the log says why).
        """

        def opened(item: dict[str, Any]) -> ItemToScore:
            ids = item.get("response_token_ids")
            response = segment_response(self._tokenizer, item.get("response"), ids)
            images = item["images"] if "images" in item else [item["image"]]
            return ItemToScore(tuple(images), item["prompt"], response)  # the scorers open the images, once

        began, status = time.monotonic(), 500
        try:
            chosen = await self._in_worker(lambda: [_attempt(opened, item) for item in items])
            outcomes = await self._score(chosen)
            status = 200
        except ServiceError as error:
            status = error.status
            raise
        finally:
            record_answer(metrics.HANDLE, status, None, time.monotonic() - began)
        record_items(outcomes)
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, ItemError):
                logger.warning("no reward for item %d of %d: %s: %s", index, len(items), outcome.code, outcome)
        return [None if isinstance(outcome, ItemError) else outcome for outcome in outcomes]

    async def score_request(self, request: RewardRequest) -> list[ScoredResponse]:
        """Answer `POST /v1/rewards` with one result per item.

        Raises:
            ServiceError: the service is busy or down, or an item cannot be scored; no item is, then.
        """

        def opened(item: RewardItem) -> ItemToScore:
            return self._opened(item.image_fields, item.prompt, item.response, item.response_token_ids)

        def prepare() -> list[ItemToScore | ItemError]:
            return [_attempt(opened, item) for item in request.items]

        return await self._score_http("items", len(request.items), prepare)

    async def score_remote(self, request: RemoteRewardRequest) -> list[ScoredResponse]:
        """Answer `POST /get_reward` with one result per query.

        Raises:
            ServiceError: as `score_request`.
        """
        special = self._tokenizer.all_special_tokens

        def opened(query: str, prompt: str, label: Any) -> ItemToScore:
            images, question = label_fields(label)
            return self._opened(images, question, split_query(query, prompt, special), None)

        def prepare() -> list[ItemToScore | ItemError]:
            rows = zip(request.query, request.prompts, request.labels, strict=True)
            return [_attempt(opened, *row) for row in rows]

        return await self._score_http("query", len(request.query), prepare)

    async def check_ready(self) -> None:
        """Return once every reward deployment has recently made a forward pass.

        Raises:
            ServiceError: 503 while one has not.
        """
        if time.monotonic() < self._ready_until:
            return
        try:
            verdicts = await asyncio.wait_for(self._call_all(probe_batch()), PROBE_TIMEOUT_S)
        except (TimeoutError, ServiceError) as error:
            raise ServiceError(503, "not_ready", "the reward models have not answered yet", 1) from error
        if any(isinstance(outcome, ItemError) for outcome in verdicts.outcomes):
            raise ServiceError(503, "not_ready", "a reward model cannot score", 1)

    def _opened(
        self, images: Sequence[str], prompt: str, response: str | None, ids: Sequence[int] | None
    ) -> ItemToScore:
        files = tuple(map(image_bytes, images))
        for file in files:
            open_image(file)
        return ItemToScore(files, prompt, segment_response(self._tokenizer, response, ids))

    async def _score_http(
        self, field: str, count: int, prepare: Callable[[], list[ItemToScore | ItemError]]
    ) -> list[ScoredResponse]:
        # A request that is larger than the queue has to find it empty; it would never get in otherwise.
        if self._waiting_items and self._waiting_items + count > self._settings.max_waiting_items:
            raise ServiceError(429, "busy", "too many items wait for their rewards: try again later", 1)
        self._count_waiting(count)
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                items = await self._in_worker(prepare)
                _raise_first(field, items)
                outcomes = await self._score(items)
        except TimeoutError as error:
            raise ServiceError(504, "timeout", "the rewards were not ready in time: send fewer items", 1) from error
        finally:
            self._count_waiting(-count)
        record_items(outcomes)
        _raise_first(field, outcomes)
        verdicts = [outcome for outcome in outcomes if isinstance(outcome, ResponseVerdicts)]
        return await self._in_worker(lambda: [self._compose(one) for one in verdicts])

    def _compose(self, one: ResponseVerdicts) -> ScoredResponse:
        options = self._settings.options
        return compose_response(one.response, one.probabilities, one.token_ends, options, one.model_version, one.facts)

    def _count_waiting(self, more: int) -> None:
        self._waiting_items += more
        metrics.REWARD_WAITING_ITEMS.set(self._waiting_items)

    async def _score(self, items: Sequence[ItemToScore | ItemError]) -> list[ResponseVerdicts | ItemError]:
        """Have the models score the items that have not failed yet."""
        good = [item for item in items if isinstance(item, ItemToScore)]
        size = self._settings.max_batch_size
        # Responses of like length share a forward pass, so that little of it is padding.
        order = sorted(range(len(good)), key=lambda index: len(good[index].response.text))
        chunks = [order[start : start + size] for start in range(0, len(order), size)]
        batches = [
            make_batch([(good[index].images, good[index].prompt, good[index].response.segments) for index in chunk])
            for chunk in chunks
        ]
        # The ends are found while the models score.
        ends, answers = await asyncio.gather(
            self._in_worker(lambda: [token_ends(self._tokenizer, item.response) for item in good]),
            asyncio.gather(*(self._call_all(batch) for batch in batches)),
        )

        scored: dict[int, ResponseVerdicts | ItemError] = {}
        for chunk, answer in zip(chunks, answers, strict=True):
            version = combined_version(answer.versions)
            for index, outcome in zip(chunk, answer.outcomes, strict=True):
                scored[index] = (
                    outcome
                    if isinstance(outcome, ItemError)
                    else ResponseVerdicts(
                        good[index].response, ends[index], outcome.probabilities, version, outcome.facts
                    )
                )
        results = iter(scored[index] for index in range(len(good)))
        return [item if isinstance(item, ItemError) else next(results) for item in items]

    async def _call_all(self, batch: ScoringBatch) -> ScoredBatch:
        message: ScoringBatch | ObjectRef[ScoringBatch] = batch
        if len(self._scorers) > 1 and batch.file_bytes > INLINE_BYTES:  # a call to each would hold a copy of its own
            message = ray.put(batch)
        parts = await asyncio.gather(*(self._call(scorer, message) for scorer in self._scorers))
        verdicts = merge_verdicts(parts)
        if not any(isinstance(outcome, ItemError) for outcome in verdicts.outcomes):
            self._ready_until = time.monotonic() + READY_FOR_S
        return verdicts

    async def _call(
        self, scorer: DeploymentHandle[Any], batch: "ScoringBatch | ObjectRef[ScoringBatch]"
    ) -> ScoredBatch:
        """Call one deployment; a batch that a dying replica lost goes to another one."""

        async def call() -> ScoredBatch:
            verdicts: ScoredBatch = await scorer.score.remote(batch)
            return verdicts

        retrying = AsyncRetrying(
            retry=retry_if_exception_type((RayActorError, DeploymentUnavailableError)),
            stop=stop_after_attempt(MAX_REPLICAS_TRIED),
            wait=wait_random_exponential(multiplier=0.2, min=0.1),
        )
        try:
            return await retrying(call)
        except RetryError as error:
            cause = error.last_attempt.exception()
            raise ServiceError(503, "unavailable", "a reward model is not available", 5) from cause

    async def _in_worker(self, work: Callable[[], GatewayResult]) -> GatewayResult:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)


def _attempt(make: Callable[..., ItemToScore], *arguments: Any) -> ItemToScore | ItemError:
    try:
        return make(*arguments)
    except ItemError as error:
        return error


def _raise_first(field: str, outcomes: Sequence[object]) -> None:
    """Turn the first failed item of a request into the answer."""
    statuses = {"image_too_large": 413, "scoring_failed": 500}
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, ItemError):
            raise ServiceError(statuses.get(outcome.code, 422), outcome.code, f"{field}[{index}]: {outcome}")
