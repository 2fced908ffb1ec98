"""What both clients of the reward service share, everything but waiting: requests, retries, checked answers."""

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx2
from pydantic import ValidationError

from fgaif_ray.serving.wire import (
    MAX_BODY_BYTES,
    MAX_ITEMS,
    TOKEN_VARIABLE,
    ErrorResponse,
    ModelList,
    RewardItem,
    RewardResponse,
    ScoredResponse,
)

RETRIED_STATUSES: Final = frozenset({429, 502, 503, 504})
"""Busy, restarting, or behind a gateway that lost it: scoring again changes nothing, so it is safe."""

REFUSED_STATUSES: Final = frozenset({413, 422})
"""Something about an item is wrong or too large; asking again with the same changes nothing."""

BODY_MARGIN: Final = 1024
"""Bytes of a body around its items."""


class RewardServiceError(Exception):
    """The service gave no rewards.

    `status` is the HTTP status, None where no answer came; `code` and `request_id` are the service's own.
    """

    def __init__(self, message: str, *, status: int | None, code: str, request_id: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.request_id = status, code, request_id

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are rebuilt from `args` alone when they cross processes; the rest would be lost on the way.
        return _rebuilt_error, (str(self), self.status, self.code, self.request_id)

    @property
    def refused(self) -> bool:
        """Whether the service answered, and one of the items was the reason: the others can have their rewards."""
        return self.status in REFUSED_STATUSES or self.code == "scoring_failed"


def _rebuilt_error(message: str, status: int | None, code: str, request_id: str | None) -> RewardServiceError:
    return RewardServiceError(message, status=status, code=code, request_id=request_id)


ReplyOutcome = ScoredResponse | RewardServiceError
"""The reward of one item, or why there is none."""


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


class Session:
    """Settings of a client, and the requests that it makes of items."""

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
            items_per_request: longer lists, and images that are too large together, are sent in several requests.

        Raises:
            ValueError: no URL of HTTP, or more items than a request may have.
        """
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url must begin with http:// or https://, not {url!r}")
        if not 1 <= items_per_request <= MAX_ITEMS:
            raise ValueError(f"items_per_request must be 1 to {MAX_ITEMS}, not {items_per_request}")
        token = token or os.environ.get(TOKEN_VARIABLE)
        self._options: dict[str, Any] = {
            "base_url": url,
            "headers": {"authorization": f"Bearer {token}"} if token else {},
            "timeout": httpx2.Timeout(timeout_s, connect=connect_timeout_s),
            "trust_env": False,
        }
        self._retries = retries or RetryPolicy()
        self._fact_types: tuple[str, ...] = ()
        self._items_per_request = items_per_request

    def parts(self, items: Sequence[RewardItem]) -> Iterator[list[bytes]]:
        """The items of each request, encoded: as many as the service takes in number and bytes."""
        part: list[bytes] = []
        size = BODY_MARGIN
        for item in items:
            encoded = item.model_dump_json(exclude_none=True).encode()
            if part and (len(part) == self._items_per_request or size + len(encoded) + 1 > MAX_BODY_BYTES):
                yield part
                part, size = [], BODY_MARGIN
            part.append(encoded)
            size += len(encoded) + 1
        if part:
            yield part

    def retry_delay(self, attempt: int, outcome: "httpx2.Response | httpx2.TransportError") -> float | None:
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


def checked(outcome: "httpx2.Response | httpx2.TransportError") -> httpx2.Response:
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


def request_body(part: Sequence[bytes]) -> bytes:
    """The body of a request with these encoded items."""
    return b'{"items":[' + b",".join(part) + b"]}"


def parse_models(answer: httpx2.Response) -> ModelList:
    """What the service says that it serves.

    Raises:
        RewardServiceError: it says something else.
    """
    try:
        return ModelList.model_validate_json(answer.content)
    except ValidationError as error:
        message = f"this is no reward service: {error.errors()[0]['msg']}"
        raise RewardServiceError(message, status=answer.status_code, code="bad_answer") from error


def parse_results(answer: httpx2.Response, expected: int) -> list[ScoredResponse]:
    """The rewards in an answer, one per item asked about.

    Raises:
        RewardServiceError: they are not all there, or are no finite numbers.
    """
    try:
        results = RewardResponse.model_validate_json(answer.content).results
    except ValidationError as error:
        message = f"the reward service's answer is none of its protocol: {error.errors()[0]['msg']}"
        raise RewardServiceError(message, status=answer.status_code, code="bad_answer") from error
    if len(results) != expected:
        message = f"the reward service answered {len(results)} results to {expected} items"
        raise RewardServiceError(message, status=answer.status_code, code="bad_answer")
    return results
