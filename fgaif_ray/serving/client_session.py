"""The shared part of both clients of the reward service: requests, retries, checked answers; all but the waiting."""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import httpx2
from pydantic import ValidationError
from tenacity import RetryCallState, retry_if_exception_type, retry_if_result, stop_after_attempt, wait_exponential

from fgaif_ray.serving.bearer_token import check_token
from fgaif_ray.serving.wire import (
    MAX_BODY_BYTES,
    MAX_BODY_KEYS,
    MAX_BODY_VALUES,
    MAX_ITEMS,
    TOKEN_VARIABLE,
    CheckedResponse,
    CheckItem,
    CheckResponse,
    ErrorDetail,
    ErrorResponse,
    ModelList,
    RewardItem,
    RewardResponse,
    ScoredResponse,
    count_keys,
    count_values,
)

RETRIED_STATUSES: Final = frozenset({429, 502, 503, 504})
"""Statuses of a busy, restarting or lost service. Scoring has no side effect, so a retry is safe."""

PROXY_STATUSES: Final = frozenset({404, 408})
"""Statuses below 500 with which Ray's proxy, in words of its own, answers for a service that is not there."""

REFUSED_STATUSES: Final = frozenset({413, 422})
"""Statuses of an item that is wrong or too large; a retry would be refused again."""

BODY_MARGIN: Final = 1024
"""Bytes of a request body around its items, and values, and keys."""
BODY_LIMITS: Final = (MAX_BODY_BYTES, MAX_BODY_VALUES, MAX_BODY_KEYS)


class RewardServiceError(Exception):
    """An answer of the service without rewards, or no answer.

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
        """Whether one of the items was the reason, so that the others can still be scored."""
        return self.status in REFUSED_STATUSES or self.code == "scoring_failed"


def _rebuilt_error(message: str, status: int | None, code: str, request_id: str | None) -> RewardServiceError:
    return RewardServiceError(message, status=status, code=code, request_id=request_id)


ReplyOutcome = ScoredResponse | RewardServiceError
"""The reward of one item, or the error in its place."""
CheckOutcome = CheckedResponse | RewardServiceError
"""The check of one item, or the error in its place."""
RouteResult = TypeVar("RouteResult")


@dataclass(frozen=True, slots=True)
class ItemRoute(Generic[RouteResult]):
    """A route that answers each item of a request with a result."""

    path: str
    read: Callable[[bytes], list[RouteResult]]
    """Reads the results in an answer; raises ValidationError."""


REWARDS: Final = ItemRoute("/v1/rewards", lambda content: RewardResponse.model_validate_json(content).results)
CHECK: Final = ItemRoute("/v1/check", lambda content: CheckResponse.model_validate_json(content).results)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Exponential back-off with jitter, at least as long as the service asks for in `Retry-After`."""

    max_retries: int = 6
    """Tries after the first one."""
    initial_s: float = 0.5
    maximum_s: float = 30.0

    def options(self) -> dict[str, Any]:
        """What tenacity is told of this policy; the last answer, or its error, is the outcome of all tries."""
        return {
            "retry": retry_if_exception_type(httpx2.TransportError) | retry_if_result(_may_succeed_later),
            "stop": stop_after_attempt(self.max_retries + 1),
            "wait": self._delay,
            "retry_error_callback": lambda state: state.outcome.result(),
        }

    def _delay(self, state: RetryCallState) -> float:
        """Seconds to wait before the next try."""
        backoff = wait_exponential(multiplier=self.initial_s, max=self.maximum_s)(state)
        asked_for = 0.0
        if state.outcome is not None and not state.outcome.failed:
            asked_for = _seconds(state.outcome.result().headers.get("retry-after"))
        return max(asked_for, random.uniform(0.5, 1.0) * backoff)


class Session:
    """The settings of a client, and its requests."""

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
            retries: how often a request is retried, and with what back-off.
            items_per_request: longer lists, and images that are too large together, are sent in several requests.

        Raises:
            ValueError: the URL is not HTTP, no header can carry the token, or there are more items than a request may
                have.
        """
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url must begin with http:// or https://, not {url!r}")
        if not 1 <= items_per_request <= MAX_ITEMS:
            raise ValueError(f"items_per_request must be 1 to {MAX_ITEMS}, not {items_per_request}")
        token = token or os.environ.get(TOKEN_VARIABLE)
        self._options: dict[str, Any] = {
            "base_url": url,
            "headers": {"authorization": f"Bearer {check_token(token)}"} if token else {},
            "timeout": httpx2.Timeout(timeout_s, connect=connect_timeout_s),
            "trust_env": False,
        }
        self._retries = retries or RetryPolicy()
        self._fact_types: tuple[str, ...] = ()
        self._items_per_request = items_per_request

    def parts(self, items: Sequence[RewardItem] | Sequence[CheckItem]) -> Iterator[list[bytes]]:
        """Split the encoded items into requests, as many in each as the service takes in number and size."""
        part: list[bytes] = []
        taken = [BODY_MARGIN] * len(BODY_LIMITS)
        for item in items:
            encoded = item.model_dump_json(exclude_none=True).encode()
            more = (len(encoded) + 1, count_values(encoded), count_keys(encoded))
            too_large = any(have + add > most for have, add, most in zip(taken, more, BODY_LIMITS, strict=True))
            if part and (len(part) == self._items_per_request or too_large):
                yield part
                part, taken = [], [BODY_MARGIN] * len(BODY_LIMITS)
            part.append(encoded)
            taken = [have + add for have, add in zip(taken, more, strict=True)]
        if part:
            yield part


def _may_succeed_later(answer: httpx2.Response) -> bool:
    """Whether a retry makes sense: the service is busy, or something before it answers in its place."""
    status = answer.status_code
    return status in RETRIED_STATUSES or ((status in PROXY_STATUSES or status >= 500) and _error_in(answer) is None)


def _error_in(answer: httpx2.Response) -> ErrorDetail | None:
    """The error of the service, None where the answer is not the service's."""
    try:
        return ErrorResponse.model_validate_json(answer.content).error
    except ValidationError:
        return None


def _seconds(retry_after: str | None) -> float:
    try:
        return max(float(retry_after or 0), 0.0)
    except ValueError:
        return 0.0  # the service never sends the header's other form, a date


def no_answer(error: httpx2.TransportError) -> RewardServiceError:
    """What a request without an answer amounts to."""
    message = f"the reward service gave no answer: {type(error).__name__}: {error}"
    return RewardServiceError(message, status=None, code="no_answer")


def checked(answer: httpx2.Response) -> httpx2.Response:
    """The answer, if it is not an error.

    Raises:
        RewardServiceError: it is.
    """
    if answer.is_success:
        return answer
    error = _error_in(answer)
    if error is None:
        message = f"the reward service answered {answer.status_code}: {answer.text[:200]}"
        raise RewardServiceError(message, status=answer.status_code, code="unknown")
    message = f"the reward service answered {answer.status_code} {error.code}: {error.message}"
    raise RewardServiceError(message, status=answer.status_code, code=error.code, request_id=error.request_id)


def request_body(part: Sequence[bytes]) -> bytes:
    """Build the body of a request from encoded items."""
    return b'{"items":[' + b",".join(part) + b"]}"


def parse_models(answer: httpx2.Response) -> ModelList:
    """Parse which reward models the service has.

    Raises:
        RewardServiceError: it says something else.
    """
    try:
        return ModelList.model_validate_json(answer.content)
    except ValidationError as error:
        message = f"this is not a reward service: {error.errors()[0]['msg']}"
        raise RewardServiceError(message, status=answer.status_code, code="bad_answer") from error


def parse_results(answer: httpx2.Response, expected: int, route: ItemRoute[RouteResult]) -> list[RouteResult]:
    """Parse the results in an answer, one per item.

    Raises:
        RewardServiceError: some are missing or not finite.
    """
    try:
        results = route.read(answer.content)
    except ValidationError as error:
        message = f"the reward service's answer does not follow its protocol: {error.errors()[0]['msg']}"
        raise RewardServiceError(message, status=answer.status_code, code="bad_answer") from error
    if len(results) != expected:
        message = f"the reward service answered {len(results)} results to {expected} items"
        raise RewardServiceError(message, status=answer.status_code, code="bad_answer")
    return results
