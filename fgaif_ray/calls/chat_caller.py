"""Calls of a chat model behind an OpenAI-compatible endpoint, each paid once.

One retry layer: ``chat_connection.py`` tries once. What belongs to the endpoint (down, wrong key, unknown model, out of
quota, overloaded for long) stops the job with a ``UserError``; what belongs to one call is an ``UnusableAnswer``, so
that its row is rejected and the others go on. A call that is under way is always waited for, since it is paid: its
answer is kept whatever has become of its row.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import openai

from fgaif_ray.calls.answers import CallAnswer
from fgaif_ray.calls.calls import Call, Calls, FreeCalls
from fgaif_ray.calls.chat_connection import Bodies, ChatConnection, Completion
from fgaif_ray.calls.endpoint_errors import endpoint_failure, failure_reason, may_be_billed, may_pass, retry_after_s
from fgaif_ray.calls.tokens import CallSize
from fgaif_ray.calls.unusable import UnusableAnswer
from fgaif_ray.errors import UserError

CHECK_TIMEOUT_S: Final = 30.0
AHEAD: Final = 2
"""Calls that are prepared or under way, for one that may be under way."""
TURNS: Final = 2
"""Of the event loop that an answer waits before it is read: the call that gets its slot leaves in them."""
FIRST_WAIT_S: Final = 0.5
LONGEST_WAIT_S: Final = 30.0
"""Bound of the drawn back-off; a ``Retry-After`` may ask for more."""
LONGEST_RETRY_AFTER_S: Final = 300.0
"""An endpoint that asks for a longer wait than this is treated as unavailable."""
CHECK_S: Final = 1.0
"""Between two looks at whether to stop, in a back-off."""

_NO_KEY: Final = "none"  # the SDK wants a key; servers without authentication ignore it
_PAUSING: Final = frozenset({429, 503})
"""With ``Retry-After`` they speak to everybody who calls."""

ReadCompletion = Callable[[Completion, tuple[int, int]], CallAnswer]
"""Makes an answer of a completion and its prompt and completion tokens."""


@dataclass
class CallUsage:
    """What a caller has asked of its endpoint; calls count every request that was answered or failed.

    Of this caller alone, in this process: the account of a run is its ledger.
    """

    calls: int = 0
    retries: int = 0
    repairs: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Chat:
    """What one call sends, and how its answer is kept and read."""

    messages: list[dict[str, str]]
    key: str
    """Covers everything that the answer depends on."""
    size: CallSize
    read: ReadCompletion
    is_repair: bool = False


def on_deck(concurrency: int) -> int:
    """Calls that are under way, or have permission and wait for a slot, or are answered and wait to be read.

    It bounds what a worker that is killed may have paid in vain.
    """
    return concurrency + max(1, concurrency // 8)


class ChatCaller:
    """Makes calls with limited concurrency, retries and an account.

    The client is made at the first call, in the process and event loop that call it: a caller that was not used yet
    can be sent to a worker.
    """

    def __init__(
        self,
        base_url: str | None,
        api_key: str | None,
        model: str,
        options: Mapping[str, Any],
        *,
        section: str,
        purpose: str,
        concurrency: int,
        timeout_s: float,
        max_retries: int,
        calls: Calls | None = None,
    ) -> None:
        """Nothing is called.

        Args:
            base_url: endpoint, up to and with ``/v1``; None is the SDK's default, api.openai.com.
            api_key: bearer token; None for an endpoint without authentication.
            model: model name sent to the endpoint.
            options: further arguments of a chat completion.
            section: of the configuration, for messages.
            purpose: what the calls are for, for messages.
            concurrency: calls in flight, those that wait before a retry among them.
            timeout_s: seconds for one call.
            max_retries: further tries of a call after a failure that may pass.
            calls: known answers, limits and account; None calls freely.
        """
        self.usage = CallUsage()
        self._base_url = base_url
        self._api_key = api_key
        self._model = model
        plain = {name: value for name, value in options.items() if name != "extra_body"}
        self._bodies = Bodies({**plain, **options.get("extra_body", {}), "model": model})
        self._section = section
        self._where = f"The {purpose} endpoint {base_url or 'https://api.openai.com/v1'}"
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._calls: Calls = FreeCalls() if calls is None else calls
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: ChatConnection | None = None
        self._slots = asyncio.Semaphore(concurrency)
        self._deck = asyncio.Semaphore(on_deck(concurrency))
        self._ahead = asyncio.Semaphore(AHEAD * concurrency)
        self._stopped: UserError | None = None

    @property
    def ahead(self) -> asyncio.Semaphore:
        """Held by whoever prepares and makes a call, so that a block's first calls leave before its last are prepared.

        It lets in more than there are slots: those that wait for an answer that somebody else asks for need none.
        """
        self._bind()
        return self._ahead

    async def answer(self, chat: Chat, failures: Sequence[UnusableAnswer] = ()) -> CallAnswer:
        """The answer to a question: a known one, or that of a call.

        Args:
            chat: the question.
            failures: once there is one, no further try is made.

        Raises:
            UnusableAnswer: this call has no answer.
            UserError: the endpoint cannot be used; stop.
        """
        known = await self._calls.find(chat.key)
        if known is not None:
            return known
        try:
            return await self._call(chat, failures)
        except BaseException:
            self._calls.abandon(chat.key)
            raise

    async def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        if self._client is not None:
            await self._client.close()
        self._client = None
        self._loop = None
        self._stopped = None

    async def _call(self, chat: Chat, failures: Sequence[UnusableAnswer]) -> CallAnswer:
        """One chat completion, tried again after failures that may pass."""
        self._bind()
        body = self._bodies(chat.messages)
        async with self._deck:
            # Permission comes before the slot, which would stay idle while the coordinator is asked.
            permit = await self._permission(chat, failures)
            try:
                await self._slots.acquire()
            except BaseException:
                self._calls.release(permit)
                raise
            try:
                call, completion = await self._tried(chat, body, permit, failures)
            finally:
                self._slots.release()
            try:
                for _ in range(TURNS):
                    await asyncio.sleep(0)
            finally:
                answer = self._read(call, completion, chat)
            return answer

    async def _permission(self, chat: Chat, failures: Sequence[UnusableAnswer]) -> int | None:
        self._check(failures)
        try:
            return await self._calls.acquire(chat.size)
        except UserError as error:
            raise self._stop(error) from None

    async def _tried(
        self, chat: Chat, body: bytes, permit: int | None, failures: Sequence[UnusableAnswer]
    ) -> tuple[Call, Completion]:
        """The answer of the first try that has one; the slot is held between tries too."""
        if self._client is None:
            self._client = ChatConnection(self._base_url, self._api_key, self._timeout_s)
        for attempt in range(self._max_retries + 1):
            if attempt > 0:
                permit = await self._permission(chat, failures)
            call = await self._sent(chat, permit, attempt, failures)
            try:
                completion = await self._client.post(body)
            except openai.APIError as error:
                self._calls.failed(call, failure_reason(error), may_be_billed=may_be_billed(error))
                asked_for = retry_after_s(error)
                if not may_pass(error) or attempt == self._max_retries or asked_for > LONGEST_RETRY_AFTER_S:
                    raise self._failure(error) from error
                if asked_for and isinstance(error, openai.APIStatusError) and error.status_code in _PAUSING:
                    self._calls.pause(asked_for)
                # Exponential back-off with full jitter, after what the endpoint asks for.
                drawn = random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt))
                await self._rest(asked_for + drawn, failures)
                continue
            except BaseException:
                self._calls.failed(call, "cancelled", may_be_billed=True)
                raise
            if completion is None:
                self._calls.failed(call, "no completion", may_be_billed=False)
                raise self._stop(
                    UserError(
                        f"{self._where} does not answer as an OpenAI-compatible one does: correct "
                        f"{self._section}.base_url, which usually ends in /v1."
                    )
                )
            return call, completion
        raise AssertionError("unreachable: the last try returns or raises")

    async def _sent(self, chat: Chat, permit: int | None, attempt: int, failures: Sequence[UnusableAnswer]) -> Call:
        """Account for a try that is about to be made."""
        try:
            self._check(failures)
        except BaseException:
            self._calls.release(permit)
            raise
        try:
            call = await self._calls.send(chat.size, permit, retry=attempt > 0, repair=chat.is_repair)
        except UserError as error:
            raise self._stop(error) from None
        self.usage.calls += 1
        self.usage.retries += attempt > 0
        self.usage.repairs += chat.is_repair and attempt == 0
        return call

    async def _rest(self, seconds: float, failures: Sequence[UnusableAnswer]) -> None:
        """Wait before the next try, as long as it makes sense."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._check(failures)
            await asyncio.sleep(min(left, CHECK_S))

    def _stop(self, error: UserError) -> UserError:
        """Make no more calls, here and elsewhere; returns the first reason."""
        self._stopped = self._stopped or error
        self._calls.stop(str(self._stopped))
        return self._stopped

    def _check(self, failures: Sequence[UnusableAnswer]) -> None:
        """Spend nothing on a row that is rejected, or after the endpoint has turned out to be unusable."""
        if self._stopped is not None:
            raise self._stopped
        if failures:
            raise failures[0]

    def _read(self, call: Call, completion: Completion, chat: Chat) -> CallAnswer:
        tokens = completion.tokens
        if tokens is not None:
            self.usage.prompt_tokens += tokens[0]
            self.usage.completion_tokens += tokens[1]
        answer = chat.read(completion, tokens or (chat.size.prompt_tokens, chat.size.completion_tokens))
        # A kill between the two leaves a call without an end in the account, and no call is paid twice.
        self._calls.keep(chat.key, answer)
        self._calls.answered(call, tokens, answer.reason)
        return answer

    def _bind(self) -> None:
        """Turn to the running event loop: connections and semaphores are bound to the loop that first uses them."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._client = None
            self._slots = asyncio.Semaphore(self._concurrency)
            self._deck = asyncio.Semaphore(on_deck(self._concurrency))
            self._ahead = asyncio.Semaphore(AHEAD * self._concurrency)

    def _failure(self, error: openai.APIError) -> UserError | UnusableAnswer:
        """What the error of a call means: the endpoint cannot be used, or this row is rejected."""
        failure = endpoint_failure(
            error,
            self._where,
            self._model,
            section=self._section,
            has_key=self._api_key is not None,
            tries=self._max_retries + 1,
            timeout_s=self._timeout_s,
        )
        return self._stop(failure) if isinstance(failure, UserError) else failure


def check_address(base_url: str | None, api_key: str | None, *, section: str, purpose: str, api_key_env: str) -> None:
    """Find out what is wrong with an endpoint before anything is started or paid.

    Raises:
        UserError: it does not answer, or it refuses the key.
    """
    with openai.OpenAI(base_url=base_url, api_key=api_key or _NO_KEY, timeout=CHECK_TIMEOUT_S) as client:
        try:
            client.models.list()
        except openai.APIConnectionError as error:
            raise UserError(
                f"The {purpose} endpoint {client.base_url} does not answer: start it or correct {section}.base_url."
            ) from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            what = "wants an API key" if api_key is None else "refused the API key"
            raise UserError(
                f"The {purpose} endpoint {client.base_url} {what}: set the environment variable {api_key_env} to a "
                "valid one."
            ) from error
        except openai.APIError:
            return  # not every endpoint lists its models; the calls themselves will tell
