"""The endpoint behind the guard: chat completions, whole or as a stream, and its models."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2

from actors.cluster.authentication import is_loopback
from actors.rewards.service_error import ServiceError
from fgaif_ray.guard.sse import DONE, EventReader

CONNECT_TIMEOUT_S: Final = 10.0
PASSED_ON: Final = frozenset({400, 404, 413, 422})
"""Statuses that are about the caller's request, and come with a message for the caller."""
LONGEST_MESSAGE: Final = 500
"""Characters of the endpoint's message."""
LONGEST_RETRY_S: Final = 60
Json = dict[str, Any]


class Upstream:
    """Calls the endpoint; errors are the guard's own, without the key."""

    def __init__(self, url: str, key: str | None, timeout_s: float) -> None:
        """Prepare without calling.

        Args:
            url: of the endpoint, with ``/v1``.
            key: bearer token; None for an endpoint without authentication.
            timeout_s: longest wait for an answer, and between two pieces of a stream.
        """
        self._key = key
        self._http = httpx2.AsyncClient(
            base_url=url.rstrip("/") + "/",
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            limits=httpx2.Limits(max_connections=None),  # admission limits the calls
            # A proxy that the environment names is for endpoints elsewhere.
            trust_env=not is_loopback(urlsplit(url).hostname or ""),
        )

    async def complete(self, body: Mapping[str, Any]) -> Json:
        """Ask for a whole answer.

        Raises:
            ServiceError: the endpoint does not answer, refuses, or answers something else.
        """
        return await self._json("POST", "chat/completions", body)

    async def models(self) -> Json:
        """Ask which models the endpoint has; raises ServiceError as ``complete`` does."""
        return await self._json("GET", "models")

    @asynccontextmanager
    async def stream(self, body: Mapping[str, Any]) -> AsyncIterator[AsyncIterator[Json]]:
        """Ask for a stream; yields its chunks once the endpoint has begun it.

        Raises:
            ServiceError: as ``complete`` does; also while chunks are read.
        """
        try:
            async with self._http.stream("POST", "chat/completions", json=body) as answer:
                if not answer.is_success:
                    await answer.aread()
                    raise self._error(answer)
                yield _chunks(answer)
        except httpx2.TransportError as error:
            raise _no_answer(error) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Json:
        try:
            answer = await self._http.request(method, path, json=body)
        except httpx2.TransportError as error:
            raise _no_answer(error) from error
        if not answer.is_success:
            raise self._error(answer)
        try:
            found = answer.json()
        except ValueError as error:
            raise _no_protocol() from error
        if not isinstance(found, dict):
            raise _no_protocol()
        return found

    def _error(self, answer: httpx2.Response) -> ServiceError:
        """The endpoint's error in the guard's words; what it says of the key is for the guard's operator alone."""
        status = answer.status_code
        if status == 429:
            retry = answer.headers.get("retry-after", "")
            seconds = min(int(retry), LONGEST_RETRY_S) if retry.isdecimal() else 1
            return ServiceError(429, "upstream_busy", "the endpoint is busy: try again later", seconds)
        if status in PASSED_ON:
            return ServiceError(
                status, "upstream_refused", f"the endpoint refused the request: {self._message(answer)}"
            )
        if status in (408, 504):
            return ServiceError(504, "upstream_timeout", "the endpoint did not answer in time")
        reason = "does not take the guard's key" if status in (401, 403) else f"failed with status {status}"
        return ServiceError(502, "upstream_failed", f"the endpoint {reason}")

    def _message(self, answer: httpx2.Response) -> str:
        try:
            said = json.loads(answer.content)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            said = f"status {answer.status_code}"
        text = str(said)[:LONGEST_MESSAGE]
        return text.replace(self._key, "***") if self._key else text


async def _chunks(answer: httpx2.Response) -> AsyncIterator[Json]:
    reader = EventReader()
    async for line in answer.aiter_lines():
        data = reader.feed(line)
        if data is None:
            continue
        if data == DONE:
            return
        try:
            chunk = json.loads(data)
        except ValueError as error:
            raise _no_protocol() from error
        if not isinstance(chunk, dict) or "error" in chunk:
            raise ServiceError(502, "upstream_failed", "the endpoint broke the stream off with an error")
        yield chunk


def _no_answer(error: httpx2.TransportError) -> ServiceError:
    if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout):
        return ServiceError(504, "upstream_timeout", "the endpoint did not answer in time")
    return ServiceError(502, "upstream_unreachable", "the endpoint cannot be reached")


def _no_protocol() -> ServiceError:
    return ServiceError(502, "upstream_failed", "the endpoint's answer is not that of an OpenAI-compatible one")
