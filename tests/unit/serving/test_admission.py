"""Admission to the queue of the reward service: by number while nothing is known, then by the estimated wait."""

import pytest

from fgaif_ray.serving.admission import FULL_BATCHES_UNMEASURED, LONGEST_RETRY_S, SHORT_QUEUE, QueueAdmission

BATCH = 8


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def admission(clock: Clock) -> QueueAdmission:
    return QueueAdmission(most_items=1000, longest_wait_s=4.0, batch_size=BATCH, clock=clock)


def work(admission: QueueAdmission, clock: Clock, batches: int, seconds: float, items: int = BATCH) -> None:
    """Score batches, each of which takes some seconds, while one more waits; all of them have left at the end."""
    admission.enter(items * (batches + 1))
    for _ in range(batches):
        clock.now += seconds
        admission.leave(items, scored=items)
    admission.leave(items)


def test_items_wait_as_long_as_the_measured_rate_allows(admission: QueueAdmission, clock: Clock) -> None:
    work(admission, clock, batches=20, seconds=0.8)  # 10 a second, so 40 in 4 s
    admission.enter(30)
    assert [admission.refusal(count) is None for count in (1, 10, 11)] == [True, True, False]


def test_a_refused_request_comes_again_when_there_is_room(admission: QueueAdmission, clock: Clock) -> None:
    work(admission, clock, batches=20, seconds=0.8)
    admission.enter(60)
    assert admission.refusal(10) == 3  # 30 of them are to be scored first
    assert admission.refusal(45) == 6  # it never fits: when all have been scored
    admission.leave(20, scored=0)
    assert admission.refusal(10) == 1


def test_what_is_admitted_follows_the_rate(admission: QueueAdmission, clock: Clock) -> None:
    work(admission, clock, batches=20, seconds=0.8)
    work(admission, clock, batches=60, seconds=4.0)  # 2 a second: a replica was lost
    admission.enter(7)
    assert (admission.refusal(1), admission.refusal(2)) == (None, 1)


def test_a_request_of_any_size_finds_an_empty_queue(admission: QueueAdmission, clock: Clock) -> None:
    work(admission, clock, batches=20, seconds=8.0)
    assert admission.refusal(5000) is None
    admission.enter(5000)
    assert admission.refusal(1) == LONGEST_RETRY_S


def test_few_items_may_always_wait(admission: QueueAdmission, clock: Clock) -> None:
    work(admission, clock, batches=3, seconds=60.0, items=1)
    admission.enter(1)
    assert [admission.refusal(count) is None for count in (SHORT_QUEUE - 1, SHORT_QUEUE)] == [True, False]


def test_a_few_batches_may_wait_before_anything_is_measured(admission: QueueAdmission) -> None:
    admission.enter(1)
    most = FULL_BATCHES_UNMEASURED * BATCH - 1
    assert (admission.refusal(most), admission.refusal(most + 1)) == (None, 1)


def test_single_items_do_not_say_how_quick_batches_are(admission: QueueAdmission, clock: Clock) -> None:
    """A caller of one item after the other gets 2 a second; batches of 8 are 16 a second."""
    for _ in range(50):
        admission.enter(1)
        clock.now += 0.5
        admission.leave(1, scored=1)
    admission.enter(8)
    assert admission.refusal(8) == 1, "it is worth asking again soon, not in the 4 s that single items would take"
    admission.leave(8)
    work(admission, clock, batches=4, seconds=0.5)
    admission.enter(8)
    assert admission.refusal(56) is None


def test_items_that_are_refused_or_time_out_say_nothing_of_the_rate(admission: QueueAdmission, clock: Clock) -> None:
    work(admission, clock, batches=20, seconds=0.8)
    admission.enter(500)
    admission.leave(500, scored=0)
    admission.enter(40)
    assert admission.refusal(1) is not None


def test_models_that_stand_still_get_no_more(admission: QueueAdmission, clock: Clock) -> None:
    work(admission, clock, batches=20, seconds=0.8)
    admission.enter(10)
    clock.now += 120
    admission.leave(5)
    assert admission.refusal(1) == LONGEST_RETRY_S


def test_the_number_of_items_is_bounded_whatever_the_rate(clock: Clock) -> None:
    admission = QueueAdmission(most_items=20, longest_wait_s=4.0, batch_size=BATCH, clock=clock)
    work(admission, clock, batches=20, seconds=0.001)
    admission.enter(15)
    assert (admission.refusal(5), admission.refusal(6)) == (None, 1)
