"""The coordinator that extraction workers share: permits, budget, claims and pauses."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fgaif_ray.calls.answers import AnswerWriter, CallAnswer, cache_folder, call_key
from fgaif_ray.calls.client import Batcher
from fgaif_ray.calls.coordinator import ELSEWHERE, LOST_S, MINE, CallCoordinator, CallEnd, KeyEnd
from fgaif_ray.calls.ledger import CallLedger
from fgaif_ray.calls.tokens import CallSize
from fgaif_ray.config import ExtractorConfig
from fgaif_ray.records import Fact

PRICE = {"input_per_million": 1_000_000, "output_per_million": 2_000_000, "currency": "EUR"}
SIZE = CallSize(prompt_tokens=10, completion_tokens=5, max_completion_tokens=20)
MOST = 10 + 2 * 20
"""Money that a call of SIZE can cost."""
DOG = CallAnswer([[Fact("existence", "There is a dog.")]], None, None, "", 10, 4)
KEY = call_key(messages="dog")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def config(**settings: Any) -> ExtractorConfig:
    return ExtractorConfig.model_validate({"base_url": "http://127.0.0.1:9/v1", "model": "m", **settings})


def test_a_call_belongs_to_the_first_who_claims_it(tmp_path: Path) -> None:
    async def work() -> list[list[str]]:
        coordinator = CallCoordinator(config(), str(tmp_path))
        return [
            await coordinator.claim("a", [KEY]),
            await coordinator.claim("b", [KEY]),
            await coordinator.claim("a", [KEY]),
        ]

    assert asyncio.run(work()) == [[MINE], [ELSEWHERE], [MINE]]


def test_a_kept_answer_reaches_every_worker(tmp_path: Path) -> None:
    async def work() -> list[str]:
        coordinator = CallCoordinator(config(), str(tmp_path))
        await coordinator.claim("a", [KEY])
        await coordinator.complete("a", [KeyEnd(KEY, json.dumps(DOG.to_json()))])
        return await coordinator.claim("b", [KEY])

    assert CallAnswer.from_json(json.loads(asyncio.run(work())[0])) == DOG


def test_a_call_without_an_answer_is_left_to_others(tmp_path: Path) -> None:
    async def work() -> list[str]:
        coordinator = CallCoordinator(config(), str(tmp_path))
        await coordinator.claim("a", [KEY])
        await coordinator.complete("a", [KeyEnd(KEY, None)])
        return await coordinator.claim("b", [KEY])

    assert asyncio.run(work()) == [MINE]


def test_a_desk_that_starts_again_knows_the_answers_in_the_files(tmp_path: Path) -> None:
    AnswerWriter(cache_folder(str(tmp_path), None)).keep(KEY, DOG)

    async def work() -> list[str]:
        return await CallCoordinator(config(), str(tmp_path)).claim("a", [KEY])

    assert CallAnswer.from_json(json.loads(asyncio.run(work())[0])) == DOG


def test_calls_of_a_worker_that_fell_silent_are_left_to_others(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("fgaif_ray.calls.coordinator.LISTEN_S", 0.01)
    clock = Clock()

    async def work() -> list[str]:
        coordinator = CallCoordinator(config(), str(tmp_path), clock)
        await coordinator.claim("a", [KEY])
        number = (await coordinator.listen("b", 0)).number
        clock.now = LOST_S + 1
        await coordinator.listen("b", number)
        return await coordinator.claim("b", [KEY])

    assert asyncio.run(work()) == [MINE]


def test_what_a_lost_worker_kept_and_could_not_tell_is_not_asked_again(tmp_path: Path) -> None:
    async def work() -> list[list[str]]:
        coordinator = CallCoordinator(config(), str(tmp_path))
        claims = [await coordinator.claim("a/1", [KEY])]
        AnswerWriter(cache_folder(str(tmp_path), None), "1").keep(KEY, DOG)
        return [*claims, await coordinator.claim("a/2", [KEY]), await coordinator.claim("b/1", [KEY])]

    (first,), *later = asyncio.run(work())
    assert first == MINE
    assert [CallAnswer.from_json(json.loads(claim)) for (claim,) in later] == [DOG, DOG]


def test_a_desk_that_starts_again_hears_what_is_under_way_before_anybody_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fgaif_ray.calls.coordinator.RESUME_S", 0.2)

    async def work() -> list[str]:
        coordinator = CallCoordinator(config(), str(tmp_path), again=True)
        claimed = asyncio.create_task(coordinator.claim("b/1", [KEY]))
        await asyncio.sleep(0)
        await coordinator.resume("a/1", [KEY])
        return await claimed

    assert asyncio.run(work()) == [ELSEWHERE]


def test_a_worker_that_was_started_again_has_what_it_claimed_at_once(tmp_path: Path) -> None:
    async def work() -> list[list[str]]:
        coordinator = CallCoordinator(config(), str(tmp_path))
        await coordinator.claim("a/1", [KEY])
        claims = [await coordinator.claim("b/1", [KEY]), await coordinator.claim("a/2", [KEY])]
        await coordinator.complete("a/1", [KeyEnd(KEY, None)])  # late words of the first life end nothing
        return [*claims, await coordinator.claim("b/1", [KEY])]

    assert asyncio.run(work()) == [[ELSEWHERE], [MINE], [ELSEWHERE]]


def test_a_worker_that_was_killed_in_the_queue_gets_no_ticket(tmp_path: Path) -> None:
    async def work() -> tuple[list[int] | str, list[int] | str]:
        coordinator = CallCoordinator(config(price=PRICE, budget=1.5 * MOST), str(tmp_path))
        await coordinator.acquire("a/1", [SIZE])
        queued = asyncio.create_task(coordinator.acquire("b/1", [SIZE]))
        await asyncio.sleep(0.01)
        await coordinator.claim("b/2", [KEY])
        await coordinator.claim("a/2", [KEY])  # gives back what is reserved beyond the estimate
        return await asyncio.wait_for(queued, 10), await asyncio.wait_for(coordinator.acquire("b/2", [SIZE]), 10)

    assert asyncio.run(work()) == ([], [2])


def test_as_many_tickets_as_the_limit_allows_now(tmp_path: Path) -> None:
    async def work() -> list[int] | str:
        return await CallCoordinator(config(requests_per_minute=180), str(tmp_path), Clock()).acquire("a", [SIZE] * 10)

    assert len(asyncio.run(work())) == 3  # one second's worth


def test_a_budget_lets_in_what_it_can_pay_for_at_the_most(tmp_path: Path) -> None:
    async def work() -> list[int] | str:
        return await CallCoordinator(config(price=PRICE, budget=2.5 * MOST), str(tmp_path)).acquire("a", [SIZE] * 10)

    assert len(asyncio.run(work())) == 2


def test_a_call_that_ends_makes_room_in_the_budget(tmp_path: Path) -> None:
    async def work() -> list[int] | str:
        coordinator = CallCoordinator(config(price=PRICE, budget=1.5 * MOST), str(tmp_path))
        (permit,) = await coordinator.acquire("a", [SIZE])
        waiting = asyncio.create_task(coordinator.acquire("b", [SIZE]))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await coordinator.complete("a", [CallEnd(permit, (10, 5))])
        return await asyncio.wait_for(waiting, 10)

    assert len(asyncio.run(work())) == 1


def test_a_spent_budget_is_told_in_one_sentence(tmp_path: Path) -> None:
    async def work() -> list[int] | str:
        coordinator = CallCoordinator(config(price=PRICE, budget=MOST), str(tmp_path))
        (permit,) = await coordinator.acquire("a", [SIZE])
        await coordinator.complete("a", [CallEnd(permit, (10, 5))])
        return await coordinator.acquire("a", [SIZE])

    assert asyncio.run(work()) == (
        "The extraction budget of 50 EUR is used up (20 EUR spent): raise label.extractor.budget and run the same "
        "command again to go on."
    )


def test_earlier_attempts_count_into_the_budget_and_calls_without_an_end_by_estimate(tmp_path: Path) -> None:
    ledger = CallLedger(str(tmp_path))
    ledger.answered(ledger.sent(SIZE, retry=False, repair=False), (10, 4), counted=True, unusable=None)
    ledger.sent(SIZE, retry=False, repair=False)
    spent = (10 + 2 * 4) + (10 + 2 * 5)

    async def work(budget: float) -> list[int] | str:
        return await CallCoordinator(config(price=PRICE, budget=budget), str(tmp_path)).acquire("a", [SIZE])

    assert f"({spent} EUR spent)" in asyncio.run(work(spent + MOST - 1))
    assert len(asyncio.run(work(spent + MOST))) == 1


def test_a_pause_is_told_to_those_who_listen(tmp_path: Path) -> None:
    async def work() -> float:
        coordinator = CallCoordinator(config(), str(tmp_path), Clock())
        listening = asyncio.create_task(coordinator.listen("b", (await coordinator.listen("b", 0)).number))
        await asyncio.sleep(0.01)
        await coordinator.pause(7)
        return (await asyncio.wait_for(listening, 10)).paused_s

    assert asyncio.run(work()) == 7


def test_who_waits_for_a_ticket_hears_why_another_worker_stopped(tmp_path: Path) -> None:
    async def work() -> list[int] | str:
        coordinator = CallCoordinator(config(requests_per_minute=1), str(tmp_path), Clock())
        await coordinator.acquire("a", [SIZE])
        waiting = asyncio.create_task(coordinator.acquire("b", [SIZE]))
        await asyncio.sleep(0.01)
        await coordinator.stop("The endpoint is down.")
        return await asyncio.wait_for(waiting, 10)

    assert asyncio.run(work()) == "The endpoint is down."


def test_what_is_asked_at_once_goes_in_one_batch_and_the_rest_in_the_next() -> None:
    batches: list[list[int]] = []

    async def send(questions: list[int]) -> Sequence[int]:
        batches.append(questions)
        await asyncio.sleep(0)
        return [-question for question in questions[:2]]

    async def work() -> list[int]:
        batcher = Batcher[int, int](send)
        return await asyncio.gather(*(batcher.ask(number) for number in range(5)))

    assert asyncio.run(work()) == [0, -1, -2, -3, -4]
    assert batches == [[0, 1, 2, 3, 4], [2, 3, 4], [4]]


def test_a_batch_that_fails_fails_everyone_who_waits() -> None:
    async def send(questions: list[int]) -> Sequence[int]:
        raise OSError("gone")

    async def work() -> list[Any]:
        batcher = Batcher[int, int](send)
        return await asyncio.gather(*(batcher.ask(number) for number in range(3)), return_exceptions=True)

    assert [type(result) for result in asyncio.run(work())] == [OSError] * 3


def test_an_error_of_what_was_told_shows_when_the_batcher_is_drained() -> None:
    async def send(questions: list[int]) -> Sequence[int]:
        raise OSError("gone")

    async def work() -> None:
        batcher = Batcher[int, int](send)
        batcher.tell(1)
        with pytest.raises(OSError, match="gone"):
            await batcher.drain()
        await batcher.drain()

    asyncio.run(work())


@pytest.mark.parametrize("settings", [{"budget": 1.0}, {"requests_per_minute": 0}, {"price": {"input_per_million": 1}}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        config(**settings)
