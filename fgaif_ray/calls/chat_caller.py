"""Calls of a chat model behind an OpenAI-compatible endpoint, each paid once.

One retry layer: ``chat_connection.py`` tries once. A failure of the endpoint (down, wrong key, unknown model, out of
quota, overloaded for long) stops the job with a ``UserError``. A failure of one call is an ``UnusableAnswer``: its row
is rejected and the others go on. A call that is under way is always waited for, since it is paid; its answer is kept
even if its row has been rejected.
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
from fgaif_ray.config import CallsConfig
from fgaif_ray.errors import UserError

CHECK_TIMEOUT_S: Final = 30.0
AHEAD: Final = 2
"""Calls that are prepared or under way, for each slot."""
TURNS: Final = 2
"""Turns of the event loop that an answer waits before it is read, so that the next call leaves first."""
FIRST_WAIT_S: Final = 0.5
LONGEST_WAIT_S: Final = 30.0
"""Bound of the random back-off; a ``Retry-After`` may ask for more."""
LONGEST_RETRY_AFTER_S: Final = 300.0
"""An endpoint that asks for a longer wait than this is treated as unavailable."""
CHECK_S: Final = 1.0
"""Seconds between two checks whether to stop, in a back-off."""

_NO_KEY: Final = "none"  # the SDK needs a key; servers without authentication ignore it
_PAUSING: Final = frozenset({429, 503})
"""Statuses whose ``Retry-After`` concerns every caller."""

ReadCompletion = Callable[[Completion, tuple[int, int]], CallAnswer]
"""Function that makes an answer from a completion and its prompt and completion tokens."""


@dataclass
class CallUsage:
    """Counts of a caller's requests; ``calls`` are all that were answered or failed.

    They are of this caller in this process only. The account of a run is its ledger.
    """

    calls: int = 0
    retries: int = 0
    repairs: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Chat:
    """One question: its messages, its key, and the reader of its answer."""

    messages: list[dict[str, str]]
    key: str
    """Key of everything that the answer depends on."""
    size: CallSize
    read: ReadCompletion
    is_repair: bool = False


def on_deck(concurrency: int) -> int:
    """Calls that are under way, or have a permit and wait for a slot, or are answered and wait to be read.

    They bound what a killed worker may have paid in vain.
    """
    return concurrency + max(1, concurrency // 8)


class ChatCaller:
    """Caller with limited concurrency, retries and an account.

    The client is made at the first call, in that process and event loop, so an unused caller can be sent to a worker.
    """

    def __init__(
        self,
        config: CallsConfig,
        base_url: str | None,
        api_key: str | None,
        options: Mapping[str, Any],
        calls: Calls | None = None,
    ) -> None:
        """Prepare the caller without calling anything.

        Args:
            config: the model's name, how many calls are in flight, and how long and how often each is tried.
            base_url: endpoint, up to and with ``/v1``; None is the SDK's default, api.openai.com.
            api_key: bearer token; None for an endpoint without authentication.
            options: further arguments of a chat completion.
            calls: known answers, limits and account; None calls freely.
        """
        self.usage = CallUsage()
        self._config = config
        self._base_url = base_url
        self._api_key = api_key
        self._bodies = Bodies({**options, "model": config.model})
        self._where = f"The {config.purpose} endpoint {base_url or 'https://api.openai.com/v1'}"
        self._calls: Calls = FreeCalls() if calls is None else calls
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: ChatConnection | None = None
        self._make_semaphores()
        self._stopped: UserError | None = None

    @property
    def ahead(self) -> asyncio.Semaphore:
        """Semaphore of prepared calls, so that a block's first calls leave before its last are prepared.

        It has more places than there are slots, since a call that another worker makes needs no slot.
        """
        self._bind()
        return self._ahead

    async def answer(self, chat: Chat, failures: Sequence[UnusableAnswer] = ()) -> CallAnswer:
        """Return the answer to a question: a known one, or that of a call.

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
        """Make one chat completion, with retries after temporary failures."""
        self._bind()
        body = self._bodies(chat.messages)
        async with self._deck:
            # The permit comes before the slot, which would stay idle while the coordinator is asked.
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
        """Return the answer of the first successful try; the slot is held between tries too."""
        if self._client is None:
            self._client = ChatConnection(self._base_url, self._api_key, self._config.timeout_s)
        for attempt in range(self._config.max_retries + 1):
            if attempt > 0:
                permit = await self._permission(chat, failures)
            call = await self._sent(chat, permit, attempt, failures)
            try:
                completion = await self._client.post(body)
            except openai.APIError as error:
                self._calls.failed(call, failure_reason(error), may_be_billed=may_be_billed(error))
                asked_for = retry_after_s(error)
                if not may_pass(error) or attempt == self._config.max_retries or asked_for > LONGEST_RETRY_AFTER_S:
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
                        f"{self._where} does not answer like an OpenAI-compatible one: correct "
                        f"{self._config.section}.base_url, which usually ends in /v1."
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
        """Wait before the next try, unless calls have stopped."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._check(failures)
            await asyncio.sleep(min(left, CHECK_S))

    def _stop(self, error: UserError) -> UserError:
        """Stop all calls, here and elsewhere; returns the first reason."""
        self._stopped = self._stopped or error
        self._calls.stop(str(self._stopped))
        return self._stopped

    def _check(self, failures: Sequence[UnusableAnswer]) -> None:
        """Raise if the row is rejected or the endpoint is unusable, so that nothing more is spent."""
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
        # A kill between the two leaves a call without an end in the account, but no call is paid twice.
        self._calls.keep(chat.key, answer)
        self._calls.answered(call, tokens, answer.reason)
        return answer

    def _bind(self) -> None:
        """Bind to the running event loop: connections and semaphores belong to the loop that first uses them."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._client = None
            self._make_semaphores()

    def _make_semaphores(self) -> None:
        concurrency = self._config.concurrency
        self._slots = asyncio.Semaphore(concurrency)
        self._deck = asyncio.Semaphore(on_deck(concurrency))
        self._ahead = asyncio.Semaphore(AHEAD * concurrency)

    def _failure(self, error: openai.APIError) -> UserError | UnusableAnswer:
        """Interpret the error of a call: the endpoint cannot be used, or this row is rejected."""
        failure = endpoint_failure(
            error,
            self._where,
            self._config.model,
            section=self._config.section,
            has_key=self._api_key is not None,
            tries=self._config.max_retries + 1,
            timeout_s=self._config.timeout_s,
        )
        return self._stop(failure) if isinstance(failure, UserError) else failure


def check_address(config: CallsConfig, base_url: str | None, api_key: str | None) -> None:
    """Find out what is wrong with an endpoint before anything is started or paid.

    Raises:
        UserError: it does not answer, or it refuses the key.
    """
    with openai.OpenAI(base_url=base_url, api_key=api_key or _NO_KEY, timeout=CHECK_TIMEOUT_S) as client:
        try:
            client.models.list()
        except openai.APIConnectionError as error:
            raise UserError(
                f"The {config.purpose} endpoint {client.base_url} does not answer: start it or correct "
                f"{config.section}.base_url."
            ) from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            what = "wants an API key" if api_key is None else "refused the API key"
            raise UserError(
                f"The {config.purpose} endpoint {client.base_url} {what}: set the environment variable "
                f"{config.api_key_env} to a valid one."
            ) from error
        except openai.APIError:
            return  # not every endpoint lists its models; the calls themselves will show
