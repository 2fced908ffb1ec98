"""Metrics of extraction workers about their calls, recorded between the extractor and its ``Calls``."""

import time

from actors import metrics
from actors.metrics.instruments import OTHER
from fgaif_ray.calls.answers import CallAnswer
from fgaif_ray.calls.calls import Call, Calls
from fgaif_ray.calls.tokens import CallSize
from fgaif_ray.config import CallsConfig

_STATUS = "status "
_KNOWN_REASONS = {"timeout": "timeout", "connection": "connection", "cancelled": "cancelled"}


class MeteredCalls:
    """``Calls`` that export counts; the ledger remains the exact account over all attempts."""

    def __init__(self, calls: Calls, config: CallsConfig) -> None:
        self._calls = calls
        self._price = config.price
        self._sent: dict[int, float] = {}

    async def find(self, key: str) -> CallAnswer | None:
        answer = await self._calls.find(key)
        if answer is not None:
            metrics.EXTRACTION_REUSED.inc()
        return answer

    def keep(self, key: str, answer: CallAnswer) -> None:
        self._calls.keep(key, answer)

    def abandon(self, key: str) -> None:
        self._calls.abandon(key)

    async def acquire(self, size: CallSize) -> int | None:
        asked = time.monotonic()
        permit = await self._calls.acquire(size)
        metrics.EXTRACTION_WAIT.inc(time.monotonic() - asked)
        return permit

    def release(self, permit: int | None) -> None:
        self._calls.release(permit)

    async def send(self, size: CallSize, permit: int | None, *, retry: bool, repair: bool) -> Call:
        asked = time.monotonic()
        call = await self._calls.send(size, permit, retry=retry, repair=repair)
        self._sent[call.number] = sent = time.monotonic()
        metrics.EXTRACTION_WAIT.inc(sent - asked)
        metrics.EXTRACTION_CALLS.inc(kind="retry" if retry else "repair" if repair else "first")
        return call

    def answered(self, call: Call, tokens: tuple[int, int] | None, unusable: str | None) -> None:
        self._ended(call)
        prompt, completion = tokens if tokens is not None else (call.size.prompt_tokens, call.size.completion_tokens)
        metrics.EXTRACTION_TOKENS.inc(prompt, kind="prompt")
        metrics.EXTRACTION_TOKENS.inc(completion, kind="completion")
        if self._price is not None:
            metrics.EXTRACTION_COST.inc(self._price.cost(prompt, completion))
        if unusable is not None:
            metrics.EXTRACTION_UNUSABLE.inc(reason=unusable)
        self._calls.answered(call, tokens, unusable)

    def failed(self, call: Call, reason: str, *, may_be_billed: bool) -> None:
        self._ended(call)
        metrics.EXTRACTION_FAILURES.inc(reason=failure_kind(reason))
        self._calls.failed(call, reason, may_be_billed=may_be_billed)

    def pause(self, seconds: float) -> None:
        self._calls.pause(seconds)

    def stop(self, reason: str) -> None:
        self._calls.stop(reason)

    def _ended(self, call: Call) -> None:
        sent = self._sent.pop(call.number, None)
        if sent is not None:
            metrics.EXTRACTION_DURATION.observe(time.monotonic() - sent)


def failure_kind(reason: str) -> str:
    """Return the label for a reason of the ledger (``endpoint_errors.failure_reason``), which may hold any status."""
    status = reason.removeprefix(_STATUS)
    if status != reason and status.isdecimal():
        return "rate_limited" if status == "429" else "server_error" if status >= "500" else "client_error"
    return _KNOWN_REASONS.get(reason, OTHER)
