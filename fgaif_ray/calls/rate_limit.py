"""Rate limits of an endpoint, by the generic cell rate algorithm (GCRA, ITU-T I.371): a token bucket kept as one time.

Pure arithmetic: callers do the waiting, and the clock is an argument.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

BURST_S: Final = 1.0
"""Seconds' worth of the limit that may start at once: endpoints watch limits per minute over shorter times too."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """The amount that a call has taken from a limit, which is corrected when the true amount is known."""

    amount: float
    end_s: float
    """Time on the limit's clock at which the amount has been made up for."""
    refunded_s: float
    """Total refunds at the time when the amount was taken, in seconds of the limit."""


class RateLimit:
    """One limit per minute.

    In any window of w seconds, no more than ``per_minute * w / 60 + max(burst, largest single amount)`` starts. An
    amount above the burst waits for the whole burst and then goes into debt, so nothing is too large to start at all.

    Example:
        >>> limit = RateLimit(60, burst=1)
        >>> limit.take(1, at=0.0)
        >>> limit.start_at(1, now=0.0)
        1.0
    """

    def __init__(self, per_minute: float, burst: float | None = None) -> None:
        """Start with a full burst.

        Args:
            per_minute: units per minute.
            burst: units that may start at once; None is one second's worth, at least 1.

        Raises:
            ValueError: a limit or burst that is not positive.
        """
        burst = max(1.0, per_minute / 60 * BURST_S) if burst is None else burst
        if not (per_minute > 0 and burst > 0):
            raise ValueError(f"limits must be positive, not {per_minute} per minute with a burst of {burst}")
        self._per_s = per_minute / 60
        self._burst_s = burst / self._per_s
        self._busy_until = float("-inf")  # GCRA's theoretical arrival time
        self._refunded_s = 0.0

    def start_at(self, amount: float, now: float) -> float:
        """Return the earliest time, from ``now`` on, at which ``amount`` may start."""
        return max(now, self._busy_until - max(0.0, self._burst_s - amount / self._per_s))

    def take(self, amount: float, at: float) -> Reservation:
        """Take an amount at a time that ``start_at`` allows."""
        self._busy_until = max(at, self._busy_until) + amount / self._per_s
        return Reservation(amount, self._busy_until, self._refunded_s)

    def adjust(self, reservation: Reservation, amount: float, now: float) -> None:
        """Correct a reservation to its true amount.

        Only what the limit has not made up for yet is refunded: the rest of an overestimate was idle time, and
        idle time does not add to a burst.
        """
        change_s = (amount - reservation.amount) / self._per_s
        if change_s >= 0:
            self._busy_until = max(now, self._busy_until) + change_s
            return
        # Later refunds may have moved this reservation forward; taking all of them into account errs to the safe side.
        end = reservation.end_s - (self._refunded_s - reservation.refunded_s)
        refund = min(-change_s, max(0.0, end - now))
        self._busy_until -= refund
        self._refunded_s += refund


@dataclass(frozen=True, slots=True)
class Admission:
    """A call that was admitted."""

    tokens: Reservation | None


class RateLimiter:
    """Requests and tokens per minute together, and the pauses an endpoint asks for.

    Example:
        >>> limiter = RateLimiter(600, 100_000, time.monotonic)
        >>> while wait := limiter.wait_s(tokens=900):
        ...     time.sleep(wait)
        >>> admission = limiter.admit(tokens=900)
        >>> limiter.adjust(admission, tokens=742)
    """

    def __init__(
        self, requests_per_minute: float | None, tokens_per_minute: float | None, clock: Callable[[], float]
    ) -> None:
        """Start with full bursts; a limit that is None does not limit.

        Raises:
            ValueError: a limit that is not positive.
        """
        self._requests = None if requests_per_minute is None else RateLimit(requests_per_minute)
        self._tokens = None if tokens_per_minute is None else RateLimit(tokens_per_minute)
        self._clock = clock
        self._paused_until = float("-inf")

    def wait_s(self, tokens: float) -> float:
        """Return the seconds until a call of so many tokens may start; 0 means now."""
        now = self._clock()
        starts = [now, self._paused_until]
        if self._requests is not None:
            starts.append(self._requests.start_at(1, now))
        if self._tokens is not None:
            starts.append(self._tokens.start_at(tokens, now))
        return max(starts) - now

    def admit(self, tokens: float) -> Admission:
        """Admit a call for which ``wait_s`` is 0."""
        now = self._clock()
        if self._requests is not None:
            self._requests.take(1, now)
        return Admission(None if self._tokens is None else self._tokens.take(tokens, now))

    def adjust(self, admission: Admission, tokens: float) -> None:
        """Correct a call's estimate to the tokens it used."""
        if self._tokens is not None and admission.tokens is not None:
            self._tokens.adjust(admission.tokens, tokens, self._clock())

    def pause(self, seconds: float) -> None:
        """Admit nothing for some seconds from now on; a longer pause that is under way stays."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    @property
    def paused_s(self) -> float:
        """Return the seconds that are left of a pause."""
        return max(0.0, self._paused_until - self._clock())
