"""Clients of the reward service over HTTP.

A reward that could not be had is an exception, never a zero: `RewardServiceError` says what the service answered, after
the retries that make sense (full queue, restart, broken connection) have been made.

Example:
    with RewardClient("http://127.0.0.1:8000") as client:
        item = reward_item("cat.png", "Describe this image.", response="A cat sleeps on a red sofa.")
        [scored] = client.score([item])
        print(scored.reward, [segment.existence for segment in scored.segments])
"""

import asyncio
import base64
import io
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx2
from PIL import Image
from pydantic import ValidationError

from fgaif_ray.reward_api import (
    TOKEN_VARIABLE,
    ErrorResponse,
    ModelList,
    RewardItem,
    RewardRequest,
    RewardResponse,
    ScoredResponse,
)

RETRIED_STATUSES: Final = frozenset({429, 502, 503, 504})
"""Busy, restarting, or behind a gateway that lost it: scoring again changes nothing, so it is safe."""


class RewardServiceError(Exception):
    """The service gave no rewards.

    `status` is the HTTP status, None where no answer came; `code` and `request_id` are the service's own.
    """

    def __init__(self, message: str, *, status: int | None, code: str, request_id: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.request_id = status, code, request_id


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Exponential back-off with jitter, at least as long as the service asks for in `Retry-After`."""

    max_retries: int = 6
    """Tries after the first one."""
    initial_s: float = 0.5
    maximum_s: float = 30.0

    def delay(self, attempt: int, retry_after_s: float = 0.0) -> float:
        """Seconds to wait before retry number `attempt` (0 is the first)."""
        backoff = min(self.maximum_s, self.initial_s * 2.0**attempt)
        return max(retry_after_s, random.uniform(0.5, 1.0) * backoff)


def reward_item(
    image: bytes | str | os.PathLike[str] | Image.Image,
    prompt: str,
    response: str | None = None,
    response_token_ids: Sequence[int] | None = None,
) -> RewardItem:
    """An item of a request.

    Args:
        image: an image file's bytes, the path of a local image file, or a PIL image (sent as PNG).
        prompt: what the model was asked.
        response: what it answered; may be left out where the ids are given.
        response_token_ids: the sampled ids, `[response_tokens]`.

    Raises:
        ValueError: neither a response nor ids are given.
    """
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        data = buffer.getvalue()
    else:
        data = image if isinstance(image, bytes) else Path(image).read_bytes()
    ids = None if response_token_ids is None else list(response_token_ids)
    encoded = base64.b64encode(data).decode()
    return RewardItem(image=encoded, prompt=prompt, response=response, response_token_ids=ids)


class _Session:
    """What both clients share: everything but waiting."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 120.0,
        connect_timeout_s: float = 10.0,
        retries: RetryPolicy | None = None,
        items_per_request: int = 64,
    ) -> None:
        """Prepare a client.

        Args:
            url: root of the service, e.g. `http://127.0.0.1:8000`.
            token: bearer token; the environment variable FGAIF_REWARD_TOKEN unless given.
            timeout_s: longest wait for the answer of one request.
            connect_timeout_s: longest wait for a connection.
            retries: how often and how patiently a request is tried again.
            items_per_request: longer lists are sent in several requests.
        """
        token = token or os.environ.get(TOKEN_VARIABLE)
        self._options: dict[str, Any] = {
            "base_url": url,
            "headers": {"authorization": f"Bearer {token}"} if token else {},
            "timeout": httpx2.Timeout(timeout_s, connect=connect_timeout_s),
            "trust_env": False,
        }
        self._retries = retries or RetryPolicy()
        self._items_per_request = items_per_request

    def _requests(self, items: Sequence[RewardItem]) -> Iterator[tuple[bytes, int]]:
        """Body and number of items of each request."""
        for start in range(0, len(items), self._items_per_request):
            chunk = list(items[start : start + self._items_per_request])
            yield RewardRequest(items=chunk).model_dump_json(exclude_none=True).encode(), len(chunk)

    def _retry_delay(self, attempt: int, outcome: "httpx2.Response | httpx2.TransportError") -> float | None:
        """Seconds to wait before the next try; None where there is to be none."""
        if attempt >= self._retries.max_retries:
            return None
        if isinstance(outcome, httpx2.TransportError):
            return self._retries.delay(attempt)
        if outcome.status_code not in RETRIED_STATUSES:
            return None
        return self._retries.delay(attempt, _seconds(outcome.headers.get("retry-after")))


def _seconds(retry_after: str | None) -> float:
    try:
        return max(float(retry_after or 0), 0.0)
    except ValueError:
        return 0.0  # the header's other form, a date, is none that the service sends


def _checked(outcome: "httpx2.Response | httpx2.TransportError") -> httpx2.Response:
    """The answer, if it is one.

    Raises:
        RewardServiceError: no answer, or an error.
    """
    if isinstance(outcome, httpx2.TransportError):
        message = f"the reward service gave no answer: {type(outcome).__name__}: {outcome}"
        raise RewardServiceError(message, status=None, code="no_answer") from outcome
    if outcome.is_success:
        return outcome
    try:
        error = ErrorResponse.model_validate_json(outcome.content).error
    except ValidationError:
        message = f"the reward service answered {outcome.status_code}: {outcome.text[:200]}"
        raise RewardServiceError(message, status=outcome.status_code, code="unknown") from None
    message = f"the reward service answered {outcome.status_code} {error.code}: {error.message}"
    raise RewardServiceError(message, status=outcome.status_code, code=error.code, request_id=error.request_id)


def _results(answer: httpx2.Response, expected: int) -> list[ScoredResponse]:
    try:
        results = RewardResponse.model_validate_json(answer.content).results
    except ValidationError as error:
        message = f"the reward service's answer is none of its protocol: {error.errors()[0]['msg']}"
        raise RewardServiceError(message, status=answer.status_code, code="bad_answer") from error
    if len(results) != expected:
        message = f"the reward service answered {len(results)} results to {expected} items"
        raise RewardServiceError(message, status=answer.status_code, code="bad_answer")
    return results


class RewardClient(_Session):
    """Blocking client; safe to share between threads."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._http = httpx2.Client(**self._options)

    def score(self, items: Sequence[RewardItem]) -> list[ScoredResponse]:
        """Dense rewards of responses, in order.

        Raises:
            RewardServiceError: the service could not or would not score them.
        """
        scored: list[ScoredResponse] = []
        for body, count in self._requests(items):
            scored += _results(self._send("POST", "/v1/rewards", body), count)
        return scored

    def models(self) -> ModelList:
        """What the service serves.

        Raises:
            RewardServiceError: it gave no answer.
        """
        return ModelList.model_validate_json(self._send("GET", "/v1/models").content)

    def is_ready(self) -> bool:
        """Whether the service answers and its models have made a forward pass; asks once."""
        try:
            return self._http.get("/ready").is_success
        except httpx2.TransportError:
            return False

    def _send(self, method: str, path: str, body: bytes | None = None) -> httpx2.Response:
        headers = {"content-type": "application/json"} if body is not None else {}
        attempt = 0
        while True:
            outcome: httpx2.Response | httpx2.TransportError
            try:
                outcome = self._http.request(method, path, content=body, headers=headers)
            except httpx2.TransportError as error:
                outcome = error
            delay = self._retry_delay(attempt, outcome)
            if delay is None:
                return _checked(outcome)
            time.sleep(delay)
            attempt += 1

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncRewardClient(_Session):
    """The same for asyncio; several requests of one list are in flight at a time."""

    def __init__(self, url: str, *, concurrency: int = 4, **options: Any) -> None:
        super().__init__(url, **options)
        self._http = httpx2.AsyncClient(**self._options)
        self._slots = asyncio.Semaphore(concurrency)

    async def score(self, items: Sequence[RewardItem]) -> list[ScoredResponse]:
        """Dense rewards of responses, in order.

        Raises:
            RewardServiceError: the service could not or would not score them.
        """

        async def part(body: bytes, count: int) -> list[ScoredResponse]:
            async with self._slots:
                return _results(await self._send("POST", "/v1/rewards", body), count)

        tasks = [asyncio.create_task(part(body, count)) for body, count in self._requests(items)]
        try:
            return [result for results in await asyncio.gather(*tasks) for result in results]
        finally:
            for task in tasks:
                task.cancel()

    async def models(self) -> ModelList:
        """What the service serves.

        Raises:
            RewardServiceError: it gave no answer.
        """
        return ModelList.model_validate_json((await self._send("GET", "/v1/models")).content)

    async def _send(self, method: str, path: str, body: bytes | None = None) -> httpx2.Response:
        headers = {"content-type": "application/json"} if body is not None else {}
        attempt = 0
        while True:
            outcome: httpx2.Response | httpx2.TransportError
            try:
                outcome = await self._http.request(method, path, content=body, headers=headers)
            except httpx2.TransportError as error:
                outcome = error
            delay = self._retry_delay(attempt, outcome)
            if delay is None:
                return _checked(outcome)
            await asyncio.sleep(delay)
            attempt += 1

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
