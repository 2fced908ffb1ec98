"""Clients of the reward service over HTTP.

A reward that is unavailable is an exception, never a zero: `RewardServiceError` says what the service answered, after
the retries that make sense (full queue, restart, broken connection).

Example:
    with RewardClient("http://127.0.0.1:8000") as client:
        item = reward_item("cat.png", "Describe this image.", response="A cat sleeps on a red sofa.")
        [scored] = client.score([item])
        print(scored.reward, [segment.probabilities for segment in scored.segments])
"""

import asyncio
import base64
import io
import os
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2
from PIL import Image
from tenacity import AsyncRetrying, Retrying

from fgaif_ray.serving.client_session import (
    CHECK,
    REWARDS,
    CheckOutcome,
    ItemRoute,
    ReplyOutcome,
    RetryPolicy,
    RewardServiceError,
    Session,
    checked,
    no_answer,
    parse_models,
    parse_results,
    request_body,
)
from fgaif_ray.serving.wire import DEFAULT_PROMPT, CheckedResponse, CheckItem, ModelList, RewardItem, ScoredResponse

__all__ = [
    "AsyncRewardClient",
    "CheckOutcome",
    "ReplyOutcome",
    "RetryPolicy",
    "RewardClient",
    "RewardServiceError",
    "check_item",
    "png_file",
    "reward_item",
]

ClientResult = TypeVar("ClientResult")
Items = Sequence[RewardItem] | Sequence[CheckItem]


def png_file(image: Image.Image) -> bytes:
    """Encode a PIL image of any mode as a PNG file in RGB, the mode that the reward models see."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="PNG")
    return buffer.getvalue()


ImageSource = bytes | str | os.PathLike[str] | Image.Image
"""An image file's bytes, the path of a local image file, or a PIL image."""


def reward_item(
    image: ImageSource | Sequence[ImageSource],
    prompt: str,
    response: str | None = None,
    response_token_ids: Sequence[int] | None = None,
) -> RewardItem:
    """Build an item of a request.

    Args:
        image: an image file's bytes, the path of a local image file, or a PIL image (sent as PNG); or several of them,
            in the order of their places.
        prompt: what the model was asked; `<image>` is the place of an image, without places all come first.
        response: what it answered; may be left out where the ids are given.
        response_token_ids: the sampled ids, `[response_tokens]`.

    Raises:
        ValueError: there is no image, or neither a response nor ids are given.
    """
    ids = None if response_token_ids is None else list(response_token_ids)
    return RewardItem(**_image_fields(image), prompt=prompt, response=response, response_token_ids=ids)


def check_item(image: ImageSource | Sequence[ImageSource], response: str, prompt: str = DEFAULT_PROMPT) -> CheckItem:
    """Build an item to be checked.

    Args:
        image: as in `reward_item`.
        response: the text.
        prompt: what it answers.

    Raises:
        ValueError: there is no image.
    """
    return CheckItem(**_image_fields(image), prompt=prompt, response=response)


def _image_fields(image: ImageSource | Sequence[ImageSource]) -> dict[str, Any]:
    images = [image] if isinstance(image, bytes | str | os.PathLike | Image.Image) else image
    files = [_encoded(one) for one in images]
    return {"image": files[0]} if len(files) == 1 else {"images": files}


def _encoded(image: ImageSource) -> str:
    """The file in base64."""
    if isinstance(image, Image.Image):
        data = png_file(image)
    else:
        data = image if isinstance(image, bytes) else Path(image).read_bytes()
    return base64.b64encode(data).decode()


class RewardClient(Session):
    """Blocking client; safe to share between threads."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._http = httpx2.Client(**self._options)

    def score(self, items: Sequence[RewardItem]) -> list[ScoredResponse]:
        """Score responses; returns their dense rewards in order.

        Raises:
            RewardServiceError: the service could not or would not score them.
        """
        return self._ask(REWARDS, items)

    def score_each(self, items: Sequence[RewardItem]) -> list[ReplyOutcome]:
        """Score each response by itself: a refused item does not affect the others.

        Returns:
            In order, the reward of each item, or the `RewardServiceError` with which the service refused it.

        Raises:
            RewardServiceError: the service gave no answer, or refused for a reason other than the items.
        """
        return self._ask_each(REWARDS, items)

    def check(self, items: Sequence[CheckItem]) -> list[CheckedResponse]:
        """Check texts; returns verdicts and a hallucination score for each, in order.

        Raises:
            RewardServiceError: the service could not or would not check them.
        """
        return self._ask(CHECK, items)

    def check_each(self, items: Sequence[CheckItem]) -> list[CheckOutcome]:
        """Check each text by itself, as `score_each` does."""
        return self._ask_each(CHECK, items)

    def _ask(self, route: ItemRoute[ClientResult], items: Items) -> list[ClientResult]:
        return [result for part in self.parts(items) for result in self._ask_part(route, part)]

    def _ask_each(self, route: ItemRoute[ClientResult], items: Items) -> list[ClientResult | RewardServiceError]:
        return [outcome for part in self.parts(items) for outcome in self._ask_halves(route, part)]

    def _ask_part(self, route: ItemRoute[ClientResult], part: Sequence[bytes]) -> list[ClientResult]:
        return parse_results(self._send("POST", route.path, request_body(part)), len(part), route)

    def _ask_halves(
        self, route: ItemRoute[ClientResult], part: Sequence[bytes]
    ) -> list[ClientResult | RewardServiceError]:
        """Ask by halving, since a refusal names no more than its first item."""
        try:
            return [*self._ask_part(route, part)]
        except RewardServiceError as error:
            if not error.refused:
                raise
            if len(part) == 1:
                return [error]
        middle = len(part) // 2
        return self._ask_halves(route, part[:middle]) + self._ask_halves(route, part[middle:])

    def models(self) -> ModelList:
        """Ask which reward models the service has.

        Raises:
            RewardServiceError: it gave no answer.
        """
        return parse_models(self._send("GET", "/v1/models"))

    def fact_types(self) -> tuple[str, ...]:
        """The fact types that the service scores, in its order; asked for once.

        Raises:
            RewardServiceError: it gave no answer.
        """
        self._fact_types = self._fact_types or self.models().fact_types
        return self._fact_types

    def is_ready(self) -> bool:
        """Tell whether the service answers and its models have made a forward pass; asks once."""
        try:
            return self._http.get("/ready").is_success
        except httpx2.TransportError:
            return False

    def _send(self, method: str, path: str, body: bytes | None = None) -> httpx2.Response:
        headers = {"content-type": "application/json"} if body is not None else {}
        retrying = Retrying(**self._retries.options())
        try:
            return checked(retrying(self._http.request, method, path, content=body, headers=headers))
        except httpx2.TransportError as error:
            raise no_answer(error) from error

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncRewardClient(Session):
    """Client for asyncio; several requests of one list are in flight at a time."""

    def __init__(self, url: str, *, concurrency: int = 4, **options: Any) -> None:
        super().__init__(url, **options)
        self._http = httpx2.AsyncClient(**self._options)
        self._slots = asyncio.Semaphore(concurrency)

    async def score(self, items: Sequence[RewardItem]) -> list[ScoredResponse]:
        """Score responses; returns their dense rewards in order.

        Raises:
            RewardServiceError: the service could not or would not score them.
        """
        return await self._gather(partial(self._ask_part, REWARDS), items)

    async def score_each(self, items: Sequence[RewardItem]) -> list[ReplyOutcome]:
        """As `RewardClient.score_each`."""
        return await self._gather(partial(self._ask_halves, REWARDS), items)

    async def check(self, items: Sequence[CheckItem]) -> list[CheckedResponse]:
        """As `RewardClient.check`."""
        return await self._gather(partial(self._ask_part, CHECK), items)

    async def check_each(self, items: Sequence[CheckItem]) -> list[CheckOutcome]:
        """As `RewardClient.check_each`."""
        return await self._gather(partial(self._ask_halves, CHECK), items)

    async def _gather(
        self, ask: Callable[[Sequence[bytes]], Coroutine[Any, Any, list[ClientResult]]], items: Items
    ) -> list[ClientResult]:
        tasks = [asyncio.create_task(ask(part)) for part in self.parts(items)]
        try:
            return [result for results in await asyncio.gather(*tasks) for result in results]
        finally:
            for task in tasks:
                task.cancel()

    async def _ask_part(self, route: ItemRoute[ClientResult], part: Sequence[bytes]) -> list[ClientResult]:
        async with self._slots:
            return parse_results(await self._send("POST", route.path, request_body(part)), len(part), route)

    async def _ask_halves(
        self, route: ItemRoute[ClientResult], part: Sequence[bytes]
    ) -> list[ClientResult | RewardServiceError]:
        try:
            return [*await self._ask_part(route, part)]
        except RewardServiceError as error:
            if not error.refused:
                raise
            if len(part) == 1:
                return [error]
        middle = len(part) // 2
        return await self._ask_halves(route, part[:middle]) + await self._ask_halves(route, part[middle:])

    async def models(self) -> ModelList:
        """Ask which reward models the service has.

        Raises:
            RewardServiceError: it gave no answer.
        """
        return parse_models(await self._send("GET", "/v1/models"))

    async def fact_types(self) -> tuple[str, ...]:
        """As `RewardClient.fact_types`."""
        self._fact_types = self._fact_types or (await self.models()).fact_types
        return self._fact_types

    async def is_ready(self) -> bool:
        """Tell whether the service answers and its models have made a forward pass; asks once."""
        try:
            return (await self._http.get("/ready")).is_success
        except httpx2.TransportError:
            return False

    async def _send(self, method: str, path: str, body: bytes | None = None) -> httpx2.Response:
        headers = {"content-type": "application/json"} if body is not None else {}
        retrying = AsyncRetrying(**self._retries.options())
        try:
            return checked(await retrying(self._http.request, method, path, content=body, headers=headers))
        except httpx2.TransportError as error:
            raise no_answer(error) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
