"""A worker's client of the call coordinator. It batches requests and keeps answers and account in its own files."""

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, Protocol, TypeVar

from fgaif_ray.calls.answers import AnswerWriter, CallAnswer, cache_folder
from fgaif_ray.calls.calls import Call
from fgaif_ray.calls.coordinator import ELSEWHERE, LIFE, MINE, CallEnd, KeyEnd, News
from fgaif_ray.calls.ledger import CallLedger
from fgaif_ray.calls.tokens import CallSize
from fgaif_ray.config import CallsConfig
from fgaif_ray.errors import UserError

ELSEWHERE_POLL_S: Final = 0.1
"""Seconds between two checks of a call that another worker makes."""
RECONNECT_S: Final = 1.0
PAUSE_POLL_S: Final = 1.0
"""Seconds between two checks whether to stop, in a pause."""

Asked = TypeVar("Asked")
Replied = TypeVar("Replied")


class Coordinator(Protocol):
    """The methods of ``CallCoordinator``, here or in another process."""

    async def claim(self, worker: str, keys: Sequence[str]) -> list[str]: ...

    async def resume(self, worker: str, keys: Sequence[str]) -> None: ...

    async def acquire(self, worker: str, sizes: Sequence[CallSize]) -> list[int] | str: ...

    async def complete(self, worker: str, ends: Sequence[CallEnd | KeyEnd]) -> None: ...

    async def pause(self, seconds: float) -> None: ...

    async def stop(self, reason: str) -> None: ...

    async def listen(self, worker: str, news: int) -> News: ...


class Batcher(Generic[Asked, Replied]):
    """Batcher: what is asked while a batch is under way goes into the next one."""

    def __init__(self, send: Callable[[list[Asked]], Awaitable[Sequence[Replied]]]) -> None:
        """Args:
        send: returns results for the first questions of a batch; the others are sent again.
        """
        self._send = send
        self._waiting: list[tuple[Asked, asyncio.Future[Replied] | None]] = []
        self._sender: asyncio.Task[None] | None = None
        self._error: Exception | None = None

    async def ask(self, question: Asked) -> Replied:
        """Return the result for one question."""
        future: asyncio.Future[Replied] = asyncio.get_running_loop().create_future()
        self._add(question, future)
        return await future

    def tell(self, question: Asked) -> None:
        """Send a message that nobody waits for; ``drain`` raises its error."""
        self._add(question, None)

    async def drain(self) -> None:
        """Return when everything is sent; raises the error of a message."""
        while self._sender is not None:
            await asyncio.shield(self._sender)
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _add(self, question: Asked, future: asyncio.Future[Replied] | None) -> None:
        self._waiting.append((question, future))
        if self._sender is None:
            self._sender = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._waiting:
                results = await self._send([question for question, _ in self._waiting])
                answered, self._waiting = self._waiting[: len(results)], self._waiting[len(results) :]
                for (_, future), result in zip(answered, results, strict=True):
                    if future is not None and not future.done():
                        future.set_result(result)
        except Exception as error:
            waiting, self._waiting = self._waiting, []
            for _, future in waiting:
                if future is None:
                    self._error = error
                elif not future.done():
                    future.set_exception(error)
        finally:
            self._sender = None


class CallClient:
    """The ``Calls`` of one extraction worker; it belongs to the event loop of its first call."""

    def __init__(self, coordinator: Coordinator, config: CallsConfig, run: str, name: str | None = None) -> None:
        """Prepare the client without writing or asking anything.

        Args:
            coordinator: shared by all workers of the run.
            config: says where answers are kept and whether calls need permits.
            run: folder of the run.
            name: of the worker; one that was killed and started again has the same. None draws one.
        """
        self._coordinator = coordinator
        life = uuid.uuid4().hex
        self._worker = f"{name or uuid.uuid4().hex}{LIFE}{life}"
        self._limited = (config.requests_per_minute, config.tokens_per_minute, config.budget) != (None, None, None)
        self._answers = AnswerWriter(cache_folder(run, config.cache, config.purpose), life)
        self._ledger = CallLedger(run, config.purpose)
        self._claims = Batcher[str, str](lambda keys: coordinator.claim(self._worker, keys))
        self._entries = Batcher[CallSize, int](self._enter)
        self._ends = Batcher[CallEnd | KeyEnd, None](self._complete)
        self._reports: set[asyncio.Task[None]] = set()
        self._asked: dict[str, asyncio.Future[CallAnswer | None]] = {}
        self._claimed: set[str] = set()
        self._paused_until = float("-inf")
        self._listener: asyncio.Task[None] | None = None
        self._is_closed = False
        self.stopped: str | None = None
        """The reason why no worker may call any more."""

    async def find(self, key: str) -> CallAnswer | None:
        self._start_listening()
        while (asked := self._asked.get(key)) is not None:
            if (answer := await asyncio.shield(asked)) is not None:
                self._ledger.hit()
                return answer
        self._asked[key] = asyncio.get_running_loop().create_future()
        try:
            while (claim := await self._claims.ask(key)) == ELSEWHERE:
                await asyncio.sleep(ELSEWHERE_POLL_S)
        except BaseException:
            self._resolve(key, None)
            raise
        if claim == MINE:
            self._claimed.add(key)
            return None
        answer = CallAnswer.from_json(json.loads(claim))
        self._resolve(key, answer)
        self._ledger.hit()
        return answer

    def keep(self, key: str, answer: CallAnswer) -> None:
        self._report(KeyEnd(key, self._answers.keep(key, answer)))
        self._resolve(key, answer)

    def abandon(self, key: str) -> None:
        self._report(KeyEnd(key, None))
        self._resolve(key, None)

    async def acquire(self, size: CallSize) -> int | None:
        self._start_listening()
        return await self._entries.ask(size) if self._limited else None

    def release(self, permit: int | None) -> None:
        if permit is not None:
            self._report(CallEnd(permit, (0, 0)))

    async def send(self, size: CallSize, permit: int | None, *, retry: bool, repair: bool) -> Call:
        while self.stopped is None and (wait := self._paused_until - time.monotonic()) > 0:
            await asyncio.sleep(min(wait, PAUSE_POLL_S))
        if self.stopped is not None:
            self.release(permit)
            raise UserError(self.stopped)
        return Call(size, self._ledger.sent(size, retry=retry, repair=repair), permit)

    def answered(self, call: Call, tokens: tuple[int, int] | None, unusable: str | None) -> None:
        used = tokens if tokens is not None else (call.size.prompt_tokens, call.size.completion_tokens)
        self._ledger.answered(call.number, used, counted=tokens is not None, unusable=unusable)
        if call.permit is not None:
            self._report(CallEnd(call.permit, used))

    def failed(self, call: Call, reason: str, *, may_be_billed: bool) -> None:
        self._ledger.failed(call.number, reason, may_be_billed=may_be_billed)
        if call.permit is not None:
            self._report(CallEnd(call.permit, None if may_be_billed else (0, 0)))

    def pause(self, seconds: float) -> None:
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)
        self._run(self._coordinator.pause(seconds))

    def stop(self, reason: str) -> None:
        if self.stopped is None:
            self.stopped = reason
            self._run(self._coordinator.stop(reason))

    async def flush(self) -> None:
        """Return when everything is written and reported. Call it before handing on the results of the calls."""
        await self._ends.drain()
        if self._reports:
            await asyncio.gather(*self._reports)
        for log in (self._answers, self._ledger):
            if log.is_buffered:
                await asyncio.to_thread(log.flush)
            else:
                log.flush()

    async def close(self) -> None:
        """Flush, and stop listening."""
        await self.flush()
        if self._listener is not None:
            # The mark, because `asyncio.wait_for` of Python 3.11 may take in a cancellation that comes with its result.
            self._is_closed = True
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
            self._listener, self._is_closed = None, False

    def _resolve(self, key: str, answer: CallAnswer | None) -> None:
        self._claimed.discard(key)
        future = self._asked.pop(key, None)
        if future is not None and not future.done():
            future.set_result(answer)

    async def _enter(self, sizes: list[CallSize]) -> list[int]:
        permits = await self._coordinator.acquire(self._worker, sizes)
        if isinstance(permits, str):
            raise UserError(permits)
        return permits

    async def _complete(self, ends: list[CallEnd | KeyEnd]) -> list[None]:
        await self._coordinator.complete(self._worker, ends)
        return [None] * len(ends)

    def _report(self, end: CallEnd | KeyEnd) -> None:
        self._ends.tell(end)

    def _run(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)

    async def _introduce(self) -> None:
        """Tell a coordinator that was started again, and has read the files, what is under way."""
        await self._coordinator.resume(self._worker, list(self._claimed))
        if self.stopped is not None:
            await self._coordinator.stop(self.stopped)

    def _start_listening(self) -> None:
        if self._listener is None:
            self._listener = asyncio.get_running_loop().create_task(self._listen())

    async def _listen(self) -> None:
        number, coordinator = 0, None
        while not self._is_closed:
            try:
                news = await self._coordinator.listen(self._worker, number)
            except Exception:  # the coordinator is being restarted; if it stays away, the next question fails
                await asyncio.sleep(RECONNECT_S)
            else:
                if coordinator not in (None, news.coordinator):
                    self._run(self._introduce())
                number, coordinator = news.number, news.coordinator
                self.stopped = self.stopped or news.stopped
                self._paused_until = max(self._paused_until, time.monotonic() + news.paused_s)
