"""The gateway of the reward service: the entry to the reward deployments, over HTTP and through a Serve handle."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeVar

import ray
from fastapi import FastAPI
from ray import ObjectRef
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse
from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from actors import metrics
from actors.cluster.loopback import keep_replica_on_loopback
from actors.rewards.http import build_app
from actors.rewards.metrics import record_answer, record_items
from actors.rewards.preparers import PreparedItem, Preparers, UnpreparedItem
from actors.rewards.requests import make_lists, prepare_request, together
from actors.rewards.service_error import ServiceError
from fgaif_ray.check.verdicts import check_response
from fgaif_ray.errors import ItemError
from fgaif_ray.fact_types import FactType
from fgaif_ray.pixel_budget import UNLIMITED, PixelBudget
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.rewards.preparation import image_bytes
from fgaif_ray.rewards.scoring import (
    PROBE_PROMPT,
    PROBE_RESPONSE,
    ResponseVerdicts,
    ScoredBatch,
    ScoringBatch,
    combined_version,
    compose_response,
    merge_verdicts,
    probe_batch,
)
from fgaif_ray.segments import ENGLISH
from fgaif_ray.serving.admission import QueueAdmission
from fgaif_ray.serving.remote_reward import label_fields
from fgaif_ray.serving.wire import (
    CheckedResponse,
    CheckItem,
    CheckRequest,
    ModelList,
    RemoteRewardRequest,
    RewardItem,
    RewardRequest,
    ScoredResponse,
)

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
    max_wait_s: float = 20.0
    preparers: int = 2
    """Processes that prepare items."""
    budget: PixelBudget = UNLIMITED
    """Of the images."""
    language: str = ENGLISH
    """Of the responses."""
    lists_in_flight: int = 2
    """Lists of a request that each reward deployment has at a time; those of other requests come in between."""


class RewardGateway:
    """The gateway: it cuts responses into segments, has them scored by the reward deployments, and composes rewards."""

    def __init__(self, settings: GatewaySettings, scorers: Sequence[DeploymentHandle[Any]]) -> None:
        keep_replica_on_loopback()
        self._settings = settings
        self._scorers = list(scorers)
        self._preparers = Preparers(settings.tokenizer, settings.preparers, settings.budget, language=settings.language)
        # One thread: the event loop stays free for requests.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gateway")
        self._admission = QueueAdmission(settings.max_waiting_items, settings.max_wait_s, settings.max_batch_size)
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

        def maker(item: dict[str, Any]) -> Callable[[], UnpreparedItem]:
            images = item["images"] if "images" in item else [item["image"]]
            response, ids = item.get("response"), item.get("response_token_ids")
            return lambda: UnpreparedItem(tuple(images), item["prompt"], response, ids, limited=False)

        began, status = time.monotonic(), 500
        try:
            # The scorers open the images, once.
            prepared = await self._prepare([maker(item) for item in items], untrusted=False)
            outcomes = await self._score(prepared)
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
        decode = lru_cache(maxsize=None)(image_bytes)  # the same image comes with every response to it

        def maker(item: RewardItem) -> Callable[[], UnpreparedItem]:
            return lambda: UnpreparedItem(
                tuple(map(decode, item.image_fields)), item.prompt, item.response, item.response_token_ids
            )

        return await self._score_http("items", [maker(item) for item in request.items])

    async def check_request(self, request: CheckRequest) -> list[CheckedResponse]:
        """Answer `POST /v1/check` with one result per item.

        Raises:
            ServiceError: as `score_request`.
        """
        decode = lru_cache(maxsize=None)(image_bytes)

        def maker(item: CheckItem) -> Callable[[], UnpreparedItem]:
            return lambda: UnpreparedItem(tuple(map(decode, item.image_fields)), item.prompt, item.response)

        scored = await self._score_http("items", [maker(item) for item in request.items])
        known = {one.name: one for one in self._settings.fact_types}
        models = self._settings.models
        coarse, trained_on = models.kind == "coarse", models.trained_on
        return [check_response(one, known, coarse=coarse, trained_on=trained_on) for one in scored]

    async def score_remote(self, request: RemoteRewardRequest) -> list[ScoredResponse]:
        """Answer `POST /get_reward` with one result per query.

        Raises:
            ServiceError: as `score_request`.
        """
        decode = lru_cache(maxsize=None)(image_bytes)

        def maker(query: str, prompt: str, label: Any) -> Callable[[], UnpreparedItem]:
            def make() -> UnpreparedItem:
                images, question = label_fields(label)
                return UnpreparedItem(tuple(map(decode, images)), question, query=(query, prompt))

            return make

        rows = zip(request.query, request.prompts, request.labels, strict=True)
        return await self._score_http("query", [maker(*row) for row in rows])

    def check_capacity(self, count: int = 1) -> None:
        """Return if so many more items may wait.

        Raises:
            ServiceError: 429, with the time after which they probably may.
        """
        retry_after_s = self._admission.refusal(count)
        if retry_after_s is not None:
            raise ServiceError(429, "busy", "too many items wait for their rewards: try again later", retry_after_s)

    async def check_ready(self) -> None:
        """Return once an item has been prepared, and every reward deployment has recently made a forward pass.

        Raises:
            ServiceError: 503 while one has not.
        """
        probe = probe_batch()
        item = UnpreparedItem(tuple(probe.images), PROBE_PROMPT, PROBE_RESPONSE)
        outcomes: list[Any] = []
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                outcomes += await self._prepare([lambda: item], untrusted=True)
                if time.monotonic() >= self._ready_until:
                    outcomes += (await self._call_all(probe)).outcomes
        except (TimeoutError, ServiceError) as error:
            raise ServiceError(503, "not_ready", "the reward models have not answered yet", 1) from error
        if any(isinstance(outcome, ItemError) for outcome in outcomes):
            raise ServiceError(503, "not_ready", "a reward model cannot score", 1)

    async def _prepare(
        self, makers: Sequence[Callable[[], UnpreparedItem]], *, untrusted: bool
    ) -> list[PreparedItem | ItemError]:
        try:
            return await prepare_request(self._preparers, makers, untrusted=untrusted)
        except RuntimeError as error:
            logger.exception("requests cannot be prepared")
            raise ServiceError(503, "unavailable", "requests cannot be prepared", 5) from error

    async def _score_http(self, field: str, makers: Sequence[Callable[[], UnpreparedItem]]) -> list[ScoredResponse]:
        waiting = len(makers)
        if waiting:
            self.check_capacity(waiting)

        def leave(count: int, scored: int) -> None:
            nonlocal waiting
            waiting -= count
            self._admission.leave(count, scored)
            metrics.REWARD_WAITING_ITEMS.set(self._admission.waiting)

        self._admission.enter(waiting)
        metrics.REWARD_WAITING_ITEMS.set(self._admission.waiting)
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                items = await self._prepare(makers, untrusted=True)
                _raise_first(field, items)
                outcomes = await self._score(items, leave)
        except TimeoutError as error:
            message = "the rewards were not ready in time: send fewer items"
            raise ServiceError(504, "timeout", message, self._admission.retry_after(waiting)) from error
        finally:
            leave(waiting, 0)
        record_items(outcomes)
        _raise_first(field, outcomes)
        verdicts = [outcome for outcome in outcomes if isinstance(outcome, ResponseVerdicts)]
        return await self._in_worker(lambda: [self._compose(one) for one in verdicts])

    def _compose(self, one: ResponseVerdicts) -> ScoredResponse:
        return compose_response(
            one.response,
            one.probabilities,
            one.token_ends,
            self._settings.options,
            one.model_version,
            one.facts,
            one.domain_distance,
        )

    async def _score(
        self, items: Sequence[PreparedItem | ItemError], leave: Callable[[int, int], None] | None = None
    ) -> list[ResponseVerdicts | ItemError]:
        """Have the models score the items that have not failed yet.

        Args:
            items: of a request.
            leave: is told how many items have been dealt with, and how many of them have been scored.
        """
        good = [item for item in items if isinstance(item, PreparedItem)]
        free = asyncio.Semaphore(self._settings.lists_in_flight)
        scored: dict[int, ResponseVerdicts | ItemError] = {}

        async def score(places: Sequence[int], batch: ScoringBatch) -> None:
            async with free:
                answer = await self._call_all(batch)
            version = combined_version(answer.versions)
            for index, outcome in zip(places, answer.outcomes, strict=True):
                item = good[index]
                scored[index] = (
                    outcome
                    if isinstance(outcome, ItemError)
                    else ResponseVerdicts(
                        item.response,
                        item.token_ends,
                        outcome.probabilities,
                        version,
                        outcome.facts,
                        outcome.domain_distance,
                    )
                )
            if leave is not None:
                leave(len(places), sum(not isinstance(outcome, ItemError) for outcome in answer.outcomes))

        await together([score(*one) for one in make_lists(good, self._settings.max_batch_size)])
        results = iter(scored[index] for index in range(len(good)))
        return [item if isinstance(item, ItemError) else next(results) for item in items]

    async def _call_all(self, batch: ScoringBatch) -> ScoredBatch:
        message: ScoringBatch | ObjectRef[ScoringBatch] = batch
        if len(self._scorers) > 1 and batch.file_bytes > INLINE_BYTES:  # a call to each would hold a copy of its own
            message = ray.put(batch)
        parts = await together([self._call(scorer, message) for scorer in self._scorers])
        verdicts = merge_verdicts(parts)
        if not any(isinstance(outcome, ItemError) for outcome in verdicts.outcomes):
            self._ready_until = time.monotonic() + READY_FOR_S
        return verdicts

    async def _call(
        self, scorer: DeploymentHandle[Any], batch: "ScoringBatch | ObjectRef[ScoringBatch]"
    ) -> ScoredBatch:
        """Call one deployment; a batch that a dying replica lost goes to another one."""

        async def call() -> ScoredBatch:
            response = scorer.score.remote(batch)
            try:
                verdicts: ScoredBatch = await response
            except asyncio.CancelledError:
                # Nobody waits for it any more. Serve goes on with it unless it is told.
                if isinstance(response, DeploymentResponse):
                    response.cancel()
                raise
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


def _raise_first(field: str, outcomes: Sequence[object]) -> None:
    """Turn the first failed item of a request into the answer."""
    statuses = {"image_too_large": 413, "scoring_failed": 500}
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, ItemError):
            raise ServiceError(statuses.get(outcome.code, 422), outcome.code, f"{field}[{index}]: {outcome}")
