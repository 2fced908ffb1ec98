"""Admission of items to the queue of the reward service: by their number, and by the time that they would wait."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MEMORY_S: Final = 15.0
"""Seconds of work after which a measured rate counts for 1/e."""
LONGEST_RETRY_S: Final = 30
"""Seconds that a refused caller is told to wait, at most: the rate may be another one by then."""
UNMEASURED_RETRY_S: Final = 1
FULL_BATCHES_UNMEASURED: Final = 8
"""Batches that may wait while nothing is known of the rate."""
SHORT_QUEUE: Final = 4
"""Items that may always wait: an estimate from a few slow ones is worth little."""
SLOWEST: Final = 1e-6
"""Items per second below which the models stand still."""


@dataclass
class RateMeter:
    """Items per second of work, the last seconds counting most."""

    least_items: int
    """Items after which there is a rate."""
    _counted: int = 0
    _items: float = 0.0
    _seconds: float = 0.0

    def add(self, items: int, seconds: float) -> None:
        """Count items and seconds of work."""
        kept = math.exp(-seconds / MEMORY_S)
        self._items, self._seconds = self._items * kept + items, self._seconds * kept + seconds
        self._counted += items

    def rate(self) -> float | None:
        """Return items per second; None while too few were counted."""
        if self._counted < self.least_items or not self._seconds:
            return None
        return max(self._items / self._seconds, SLOWEST)


class QueueAdmission:
    """Which items may wait, how long they would, and when a refused caller should come again.

    The rate is measured over the time in which items wait. What is measured while at least a batch of them does is what
    the service can do; what is measured under less load (models read a few items as slowly as a batch of them) is a
    lower bound, and is used until there is better.

    Example: with 30 items waiting, 10 scored a second and ``longest_wait_s=4``, 10 more items may wait, 11 may not.
    """

    def __init__(
        self, most_items: int, longest_wait_s: float, batch_size: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin with an empty queue and no rate.

        Args:
            most_items: that may wait, however quickly they are scored.
            longest_wait_s: estimated time until the last item of a request is scored, beyond which it is refused.
            batch_size: items that keep the models busy.
            clock: seconds.
        """
        self._most_items, self._longest_wait_s, self._batch_size, self._clock = (
            most_items,
            longest_wait_s,
            batch_size,
            clock,
        )
        self._waiting = 0
        self._since = clock()
        self._full, self._any = RateMeter(batch_size), RateMeter(1)

    @property
    def waiting(self) -> int:
        """Items that wait or are being scored."""
        return self._waiting

    def refusal(self, count: int) -> int | None:
        """Return in how many seconds a request of so many items should be sent again, None if it may wait now.

        A request that is larger than the queue has to find it empty; it would never get in otherwise.
        """
        after = self._waiting + count
        if self._waiting == 0 or after <= SHORT_QUEUE:
            return None
        rate = self._rate()
        if rate is None:
            room = min(self._most_items, FULL_BATCHES_UNMEASURED * self._batch_size)
            return None if after <= room else UNMEASURED_RETRY_S
        if after <= self._most_items and after / rate <= self._longest_wait_s:
            return None
        room = min(self._most_items, int(self._longest_wait_s * rate))
        return self.retry_after(after - max(room, count))

    def retry_after(self, items: int) -> int:
        """Return whole seconds in which so many items of the queue are likely to be scored."""
        rate = self._full.rate()
        if rate is None:
            return UNMEASURED_RETRY_S
        return min(max(math.ceil(items / rate), 1), LONGEST_RETRY_S)

    def enter(self, count: int) -> None:
        """Let items wait."""
        self._pass_time()
        self._waiting += count

    def leave(self, count: int, scored: int = 0) -> None:
        """Take items out of the queue.

        Args:
            count: that do not wait any more.
            scored: how many of them the models have scored; others say nothing of the rate.
        """
        was_full = self._waiting >= self._batch_size
        self._pass_time()
        self._waiting -= count
        for meter in (self._any, self._full) if was_full else (self._any,):
            meter.add(scored, 0.0)

    def _pass_time(self) -> None:
        now = self._clock()
        if self._waiting:
            self._any.add(0, now - self._since)
        if self._waiting >= self._batch_size:
            self._full.add(0, now - self._since)
        self._since = now

    def _rate(self) -> float | None:
        return self._full.rate() or self._any.rate()
