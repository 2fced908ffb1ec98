"""Learning rates as a function of the step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgaif_ray.vlm.schedule import Schedule, learning_rate_scale


def scales(schedule: Schedule, warmup: int, total: int) -> list[float]:
    return [
        learning_rate_scale(step, schedule=schedule, warmup_steps=warmup, total_steps=total) for step in range(total)
    ]


def test_a_constant_rate_stays_after_the_warm_up() -> None:
    assert scales("constant", 4, 6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert scales("constant", 0, 3) == [1.0, 1.0, 1.0]


def test_a_linear_rate_by_hand() -> None:
    assert scales("linear", 2, 6) == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])


def test_a_cosine_rate_by_hand() -> None:
    assert scales("cosine", 0, 4) == pytest.approx([1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])


@given(st.sampled_from(["linear", "cosine"]), st.integers(0, 20), st.integers(1, 50))
def test_rates_rise_to_one_then_fall_and_no_step_learns_nothing(schedule: Schedule, warmup: int, total: int) -> None:
    rates = scales(schedule, warmup, total)
    rising, falling = rates[:warmup], rates[warmup:]
    assert all(0 < rate <= 1 for rate in rates)
    assert rising == sorted(rising) and falling == sorted(falling, reverse=True)
    assert falling[:1] in ([], [1.0])


@pytest.mark.parametrize(("schedule", "reason"), [("linear", "number of steps"), ("step", "must be")])
def test_a_schedule_that_cannot_be_followed_is_refused(schedule: Schedule, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        learning_rate_scale(0, schedule=schedule, warmup_steps=0)
