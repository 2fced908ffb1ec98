"""The call coordinator that all extraction workers of a cluster share: rate limits, budget, and who asks what.

It runs in one event loop, without threads. Workers ask in batches. A worker is known by a name, which stays when it
is killed and started again, and by a mark of its current life, joined by ``LIFE``. The mark also names its answer file.
When a worker is lost, its file is read, because it may have kept an answer that it could not report any more. Then what
it had under way is free for others. A restarted coordinator is told by the workers what they have under way before
anybody claims.

    resume  -> nothing; what a worker has under way
    claim   -> the answer, or "yours to ask", or "another worker is asking"
    acquire -> permits for the calls that may start now, at least one; or why there are no more
    complete -> nothing; takes what calls used and brought
    listen  -> pauses that the endpoint has asked for, and why to stop; a worker that listens is alive
"""

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from fgaif_ray.calls.answers import AnswerIndex, cache_folder
from fgaif_ray.calls.ledger import read_ledger
from fgaif_ray.calls.rate_limit import Admission, RateLimiter
from fgaif_ray.calls.tokens import CallSize
from fgaif_ray.config import CallsConfig

MINE: Final = "mine"
ELSEWHERE: Final = "elsewhere"
LIFE: Final = "/"
LISTEN_S: Final = 5.0
"""Longest time that ``listen`` takes."""
LOST_S: Final = 30.0
"""Silence after which a worker is taken for dead: others may make its calls."""
POLL_S: Final = 1.0
RESUME_S: Final = 3.0
"""Seconds for workers to tell a restarted coordinator what they have under way; they hear of it at once."""


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The end of a call that had a permit."""

    permit: int
    tokens: tuple[int, int] | None
    """Prompt and completion tokens; None if they are unknown and the estimate stays."""


@dataclass(frozen=True, slots=True)
class KeyEnd:
    """The end of a claim."""

    key: str
    answer: str | None
    """The answer as JSON; None leaves the call to others."""


@dataclass(frozen=True, slots=True)
class News:
    """News for a worker."""

    number: int
    paused_s: float
    """Seconds that are left of a pause."""
    stopped: str | None
    """The reason why no worker may call any more."""
    coordinator: str
    """Changes when the coordinator is started again."""


@dataclass(frozen=True, slots=True)
class _OpenCall:
    worker: str
    size: CallSize
    admission: Admission
    most: float
    """Money that the call can cost."""


class CallCoordinator:
    """The state behind ``CallClient``, for one run.

    Example: ``coordinator = CallCoordinator(config.label.extractor, "runs/a")``; a Ray actor wraps it for a cluster.
    """

    def __init__(
        self, config: CallsConfig, run: str, clock: Callable[[], float] = time.monotonic, *, again: bool = False
    ) -> None:
        """Read the answers and the account of earlier attempts.

        Args:
            config: limits, price and budget.
            run: folder of the run.
            clock: monotonic seconds.
            again: whether workers may have calls under way that another coordinator knew of.
        """
        self._price = config.price
        self._budget = config.budget
        self._purpose, self._section = config.purpose, config.section
        self._clock = clock
        self._claims_from = clock() + (RESUME_S if again else 0.0)
        self._limiter = RateLimiter(config.requests_per_minute, config.tokens_per_minute, clock)
        self._answers = AnswerIndex(cache_folder(run, config.cache, config.purpose))
        totals = read_ledger(run, config.purpose)
        self._spent = 0.0 if self._price is None else totals.money(self._price) + totals.unknown_money(self._price)
        self._reserved = 0.0
        self._calls: dict[int, _OpenCall] = {}
        self._permits = 0
        self._claims: dict[str, str] = {}
        self._last_heard: dict[str, float] = {}
        self._lives: dict[str, str] = {}
        self._ended: set[str] = set()
        self._identity = uuid.uuid4().hex
        # A number that no worker knows, so that each hears at once which coordinator this is.
        self._news = random.randrange(1, 1 << 62)
        self._stopped: str | None = None
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._told = asyncio.Event()

    async def claim(self, worker: str, keys: Sequence[str]) -> list[str]:
        """Return for each key the answer as JSON, ``MINE`` for a call the worker now has to make, or ``ELSEWHERE``."""
        self._hear(worker)
        while (wait := self._claims_from - self._clock()) > 0:
            await asyncio.sleep(wait)
        return [self._claim(worker, key) for key in keys]

    async def resume(self, worker: str, keys: Sequence[str]) -> None:
        """Record what a worker has claimed from an earlier coordinator."""
        self._hear(worker)
        for key in keys:
            self._claims.setdefault(key, worker)

    def _claim(self, worker: str, key: str) -> str:
        answer = self._answers.find(key)
        if answer is not None:
            return answer
        holder = self._claims.setdefault(key, worker)
        return MINE if holder == worker else ELSEWHERE

    async def acquire(self, worker: str, sizes: Sequence[CallSize]) -> list[int] | str:
        """Grant permits for the first of these calls, as many as may start now and at least one.

        Returns:
            The permits; none for a worker that was lost while it waited. Or one sentence: another worker has stopped,
            or the budget is too small for a call and no call is under way whose end could free some.
        """
        self._hear(worker)
        async with self._turn:  # first come, first served
            while True:
                if self._stopped is not None:
                    return self._stopped
                if worker not in self._last_heard:
                    return []
                if not self._fits(sizes[0]):
                    if not self._calls:
                        return self._refusal()
                    await self._change(POLL_S)
                elif (wait := self._wait_s(sizes[0])) > 0:
                    await self._change(wait)
                else:
                    break
                self._forget_lost_workers()
            permits = [self._admit(worker, sizes[0])]
            for size in sizes[1:]:
                if not self._fits(size) or self._wait_s(size) > 0:
                    break
                permits.append(self._admit(worker, size))
            return permits

    async def complete(self, worker: str, ends: Sequence[CallEnd | KeyEnd]) -> None:
        """Record what calls have used and brought."""
        self._hear(worker)
        for end in ends:
            if isinstance(end, CallEnd):
                self._end(end.permit, end.tokens)
            elif self._claims.get(end.key) == worker:
                del self._claims[end.key]
        self._answers.add((end.key, end.answer) for end in ends if isinstance(end, KeyEnd) and end.answer is not None)
        self._changed.set()

    async def pause(self, seconds: float) -> None:
        """Pause all calls for some seconds, and tell every listener."""
        self._limiter.pause(seconds)
        self._tell()

    async def stop(self, reason: str) -> None:
        """Stop all calls, and tell every listener."""
        self._stopped = self._stopped or reason
        self._changed.set()
        self._tell()

    async def listen(self, worker: str, news: int) -> News:
        """Wait for news that the worker has not heard, or for a while.

        Args:
            worker: name of the worker.
            news: number of the last news it knows, 0 at first.
        """
        self._hear(worker)
        if news == self._news:
            told = self._told
            try:
                await asyncio.wait_for(told.wait(), LISTEN_S)
            except TimeoutError:
                self._forget_lost_workers()
        return News(self._news, self._limiter.paused_s, self._stopped, self._identity)

    def close(self) -> None:
        """Free the disk space of the known answers."""
        self._answers.close()

    def _tell(self) -> None:
        self._news += 1
        self._told.set()
        self._told = asyncio.Event()

    def _hear(self, worker: str) -> None:
        """Note that a worker is alive. If it was started again, what it had under way before is lost."""
        if worker in self._ended:
            return  # a late message of a process that is gone
        self._last_heard[worker] = self._clock()
        name = worker.partition(LIFE)[0]
        earlier, self._lives[name] = self._lives.get(name, worker), worker
        if earlier != worker:
            self._ended.add(earlier)
            self._forget({earlier})

    def _forget_lost_workers(self) -> None:
        now = self._clock()
        self._forget({worker for worker, heard in self._last_heard.items() if now - heard > LOST_S})

    def _forget(self, lost: set[str]) -> None:
        for worker in lost:
            self._last_heard.pop(worker, None)
        for worker in lost:
            if life := worker.partition(LIFE)[2]:
                self._answers.read(life)
        if lost:
            self._claims = {key: worker for key, worker in self._claims.items() if worker not in lost}
            for permit in [permit for permit, call in self._calls.items() if call.worker in lost]:
                self._end(permit, None)

    async def _change(self, seconds: float) -> None:
        """Wait for some seconds, or until a call ends."""
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except TimeoutError:
            return

    def _wait_s(self, size: CallSize) -> float:
        return self._limiter.wait_s(size.prompt_tokens + size.completion_tokens)

    def _most(self, size: CallSize) -> float:
        return 0.0 if self._price is None else self._price.cost(size.prompt_tokens, size.max_completion_tokens)

    def _fits(self, size: CallSize) -> bool:
        if self._budget is None:
            return True
        return self._spent + self._reserved + self._most(size) <= self._budget

    def _refusal(self) -> str:
        assert self._price is not None
        currency = self._price.currency
        return (
            f"The {self._purpose} budget of {self._budget:g} {currency} is used up ({self._spent:.4g} {currency} "
            f"spent): raise {self._section}.budget and run the same command again to go on."
        )

    def _admit(self, worker: str, size: CallSize) -> int:
        self._permits += 1
        admission = self._limiter.admit(size.prompt_tokens + size.completion_tokens)
        self._calls[self._permits] = _OpenCall(worker, size, admission, self._most(size))
        self._reserved += self._most(size)
        return self._permits

    def _end(self, permit: int, tokens: tuple[int, int] | None) -> None:
        call = self._calls.pop(permit, None)
        if call is None:
            return  # a permit of the coordinator before a restart, or of a worker taken for dead
        self._reserved = self._reserved - call.most if self._calls else 0.0
        used = tokens if tokens is not None else (call.size.prompt_tokens, call.size.completion_tokens)
        self._limiter.adjust(call.admission, sum(used))
        if self._price is not None:
            self._spent += self._price.cost(*used)
