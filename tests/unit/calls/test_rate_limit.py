"""Rate limits: what they promise for any series of calls, on a clock that the test moves."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgaif_ray.calls.rate_limit import RateLimit, RateLimiter

AMOUNTS = st.floats(0.1, 500)
GAPS = st.floats(0, 30)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def largest_excess(events: list[tuple[float, float]], per_minute: float) -> float:
    """By how much the fullest window between two events exceeds the rate, in units."""
    worst = -math.inf
    for first in range(len(events)):
        total = 0.0
        for at, amount in events[first:]:
            total += amount
            worst = max(worst, total - per_minute / 60 * (at - events[first][0]))
    return worst


@given(st.floats(1, 6000), st.floats(0.5, 300), st.lists(st.tuples(GAPS, AMOUNTS), max_size=40))
def test_no_window_holds_more_than_the_rate_and_the_burst(
    per_minute: float, burst: float, calls: list[tuple[float, float]]
) -> None:
    limit, now, events = RateLimit(per_minute, burst), 0.0, []
    for gap, amount in calls:
        now = limit.start_at(amount, now + gap)
        limit.take(amount, now)
        events.append((now, amount))
    largest = max((amount for _, amount in calls), default=0)
    assert largest_excess(events, per_minute) <= max(burst, largest) * (1 + 1e-9) + 1e-6


@given(
    st.floats(1, 6000),
    st.floats(0.5, 300),
    st.lists(st.tuples(GAPS, AMOUNTS, st.floats(0, 1), st.integers(0, 5)), max_size=40),
)
def test_amounts_given_back_add_to_no_burst(
    per_minute: float, burst: float, calls: list[tuple[float, float, float, int]]
) -> None:
    limit, now, events, open_calls = RateLimit(per_minute, burst), 0.0, [], []
    for index, (gap, estimate, share, delay) in enumerate(calls):
        now = limit.start_at(estimate, now + gap)
        open_calls.append((index + delay, limit.take(estimate, now), estimate * share))
        events.append((now, estimate * share))
        for due, reservation, actual in open_calls:
            if due == index:
                limit.adjust(reservation, actual, now)
    largest = max((estimate for _, estimate, _, _ in calls), default=0)
    assert largest_excess(events, per_minute) <= max(burst, largest) * (1 + 1e-9) + 1e-6


@given(st.floats(60, 6000), st.lists(AMOUNTS, min_size=1, max_size=40))
def test_what_was_given_back_at_once_can_be_used(per_minute: float, amounts: list[float]) -> None:
    limit = RateLimit(per_minute, burst=500)
    for amount in amounts:
        limit.adjust(limit.take(amount, 0.0), 0.0, 0.0)
    assert limit.start_at(500, 0.0) == pytest.approx(0, abs=1e-6)


@given(st.floats(1, 6000), st.floats(1, 100), st.floats(1, 100))
def test_an_underestimate_is_paid_by_later_calls(per_minute: float, estimate: float, more: float) -> None:
    limit = RateLimit(per_minute, burst=1)
    reservation = limit.take(estimate, 0.0)
    limit.adjust(reservation, estimate + more, 0.0)
    assert limit.start_at(1, 0.0) == pytest.approx((estimate + more) * 60 / per_minute)


def test_an_idle_limit_lets_a_burst_in_and_then_the_rate() -> None:
    limit, starts = RateLimit(120, burst=4), []
    now = 100.0
    for _ in range(8):
        now = limit.start_at(1, now)
        limit.take(1, now)
        starts.append(now - 100)
    assert starts == pytest.approx([0, 0, 0, 0, 0.5, 1, 1.5, 2])


def test_both_limits_hold() -> None:
    clock = Clock()
    limiter = RateLimiter(600, 6000, clock)
    limiter.admit(100)
    assert limiter.wait_s(1) == pytest.approx(0.01)  # one second's worth of tokens is spent, requests are left
    clock.now = 1.0
    for _ in range(10):
        limiter.admit(1)
    assert limiter.wait_s(1) == pytest.approx(0.1)


def test_without_limits_nothing_waits() -> None:
    limiter = RateLimiter(None, None, Clock())
    for _ in range(1000):
        limiter.admit(10**6)
    assert limiter.wait_s(10**6) == 0


def test_a_pause_holds_everything_and_a_shorter_one_does_not_end_it() -> None:
    clock = Clock()
    limiter = RateLimiter(None, None, clock)
    limiter.pause(10)
    limiter.pause(2)
    assert limiter.wait_s(1) == limiter.paused_s == 10
    clock.now = 10.0
    assert limiter.wait_s(1) == limiter.paused_s == 0


@pytest.mark.parametrize(("per_minute", "burst"), [(0, None), (-1, None), (math.nan, None), (60, 0)])
def test_a_limit_that_is_not_positive_is_refused(per_minute: float, burst: float | None) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        RateLimit(per_minute, burst)
