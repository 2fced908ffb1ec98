"""Calls that are paid once and accounted for: extractors, a coordinator and the files, against a real local server."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fact_extraction import DOG_FACTS, RESPONSE, make_extractor
from support.fake_openai import DOG, FakeOpenAI, Reply

from fgaif_ray.calls import chat_caller
from fgaif_ray.calls.client import CallClient
from fgaif_ray.calls.coordinator import CallCoordinator, News
from fgaif_ray.calls.ledger import read_ledger
from fgaif_ray.calls.unusable import UnusableAnswer
from fgaif_ray.config import ExtractorConfig
from fgaif_ray.errors import UserError
from fgaif_ray.records import Fact

PRICE = {"input_per_million": 100_000, "output_per_million": 100_000}
CALL_COST = 1.4
"""Of the 10 + 4 tokens that the server counts for an answer."""


@pytest.fixture
def endpoint() -> Iterator[FakeOpenAI]:
    with FakeOpenAI() as server:
        yield server


@pytest.fixture(autouse=True)
def quick_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_caller, "FIRST_WAIT_S", 0.01)


class RestartedDesk:
    """A coordinator as workers see it across a restart: whoever was listening asks again."""

    def __init__(self, config: ExtractorConfig, run: str) -> None:
        self._new = lambda again: CallCoordinator(config, run, again=again)
        self._coordinator = self._new(False)
        self._listeners: set[asyncio.Task[News]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coordinator, name)

    async def listen(self, worker: str, news: int) -> News:
        while True:
            task = asyncio.ensure_future(self._coordinator.listen(worker, news))
            self._listeners.add(task)
            await asyncio.wait([task])
            self._listeners.discard(task)
            if not task.cancelled():
                return task.result()

    def restart(self) -> None:
        self._coordinator = self._new(True)
        for task in self._listeners:
            task.cancel()


def extract_all(
    endpoint: FakeOpenAI,
    run: Path,
    workers: list[list[list[str]]],
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> list[list[list[Fact]] | BaseException]:
    """One attempt at a run: a coordinator, and workers with responses, given as lists of segments."""
    config = ExtractorConfig.model_validate({"base_url": endpoint.url, "model": "annotator", **(settings or {})})

    async def attempt() -> list[list[list[Fact]] | BaseException]:
        coordinator = CallCoordinator(config, str(run))
        clients = [CallClient(coordinator, config, str(run)) for _ in workers]
        extractors = [make_extractor(endpoint, calls=client, **options) for client in clients]
        try:
            return await asyncio.gather(
                *(
                    extractor.extract("".join(segments), segments)
                    for extractor, responses in zip(extractors, workers, strict=True)
                    for segments in responses
                ),
                return_exceptions=True,
            )
        finally:
            for extractor, client in zip(extractors, clients, strict=True):
                await extractor.close()
                await client.close()

    return asyncio.run(attempt())


@pytest.mark.parametrize("workers", [1, 3])
def test_equal_calls_in_flight_are_made_once(endpoint: FakeOpenAI, tmp_path: Path, workers: int) -> None:
    endpoint.reply = lambda number, body: Reply.completion(DOG, delay_s=0.2)
    results = extract_all(endpoint, tmp_path, [[[RESPONSE]] * 3] * workers)
    assert results == [[DOG_FACTS]] * 3 * workers
    assert len(endpoint.requests) == 1
    assert read_ledger(str(tmp_path)).cache_hits == 3 * workers - 1


def test_an_answer_is_not_paid_again_by_the_next_attempt(endpoint: FakeOpenAI, tmp_path: Path) -> None:
    first = extract_all(endpoint, tmp_path, [[["A dog. ", "A cat."]]])
    assert extract_all(endpoint, tmp_path, [[["A dog. ", "A cat."]]]) == first
    assert len(endpoint.requests) == 2


def test_a_desk_that_is_started_again_learns_what_is_under_way(endpoint: FakeOpenAI, tmp_path: Path) -> None:
    endpoint.reply = lambda number, body: Reply.completion(DOG, delay_s=1)
    config = ExtractorConfig.model_validate({"base_url": endpoint.url, "model": "annotator"})

    async def attempt() -> list[list[list[Fact]]]:
        coordinator = RestartedDesk(config, str(tmp_path))
        clients = [CallClient(coordinator, config, str(tmp_path)) for _ in range(2)]
        extractors = [make_extractor(endpoint, calls=client) for client in clients]
        first = asyncio.create_task(extractors[0].extract(RESPONSE, [RESPONSE]))
        while not endpoint.requests:
            await asyncio.sleep(0.01)
        coordinator.restart()
        second = asyncio.create_task(extractors[1].extract(RESPONSE, [RESPONSE]))
        results = [await first, await second]
        for extractor, client in zip(extractors, clients, strict=True):
            await extractor.close()
            await client.close()
        return results

    assert asyncio.run(attempt()) == [[DOG_FACTS]] * 2
    assert len(endpoint.requests) == 1


def test_runs_that_share_a_cache_share_answers_and_not_the_account(endpoint: FakeOpenAI, tmp_path: Path) -> None:
    shared = {"cache": str(tmp_path / "shared")}
    for run in ("a", "b"):
        extract_all(endpoint, tmp_path / run, [[[RESPONSE]]], shared)
    assert len(endpoint.requests) == 1
    assert [read_ledger(str(tmp_path / run)).calls for run in ("a", "b")] == [1, 0]


def test_a_bad_answer_is_kept_too_and_only_its_repair_is_asked_again(endpoint: FakeOpenAI, tmp_path: Path) -> None:
    endpoint.script(Reply.completion("Facts: a dog"), Reply.error(400, "too_long"), Reply.completion(DOG))
    (failure,) = extract_all(endpoint, tmp_path, [[[RESPONSE]]])
    assert isinstance(failure, UnusableAnswer) and failure.reason == "rejected"
    assert extract_all(endpoint, tmp_path, [[[RESPONSE]]]) == [[DOG_FACTS]]
    assert [len(request["messages"]) for request in endpoint.requests] == [1, 3, 3]


def test_a_changed_prompt_or_limit_asks_again(endpoint: FakeOpenAI, tmp_path: Path) -> None:
    for max_tokens in (100, 200):
        extract_all(endpoint, tmp_path, [[[RESPONSE]]], max_tokens=max_tokens)
    assert len(endpoint.requests) == 2


def test_the_account_equals_the_servers_to_the_token(endpoint: FakeOpenAI, tmp_path: Path) -> None:
    kinds = [
        Reply.completion(DOG),
        Reply.error(500),
        Reply.completion("Facts: a dog"),
        Reply.error(429, retry_after="0.01"),
        Reply.completion(DOG),
        Reply.error(503),
        Reply.error(400, "too_long"),
    ]
    endpoint.reply = lambda number, body: kinds[number % len(kinds)]
    responses = [[f"Dog {n}. ", f"Cat {n}. ", f"Cow {n}."] for n in range(20)]
    for _ in range(3):  # the second and third attempt ask again what was refused
        extract_all(endpoint, tmp_path, [responses[:10], responses[10:]], max_retries=9, concurrency=2)
    totals = read_ledger(str(tmp_path))
    assert totals.calls == len(endpoint.requests)
    assert (totals.prompt_tokens, totals.completion_tokens) == endpoint.tokens
    failed = {f"status {status}": endpoint.statuses[status] for status in (400, 429, 500, 503)}
    assert totals.failed_by_reason == failed
    assert totals.unknown_calls == 0


def test_calls_under_way_are_waited_for_when_a_response_is_rejected(endpoint: FakeOpenAI, tmp_path: Path) -> None:
    def reply(number: int, body: dict[str, Any]) -> Reply:
        if "Sub-sentence: Bad" in body["messages"][0]["content"]:
            return Reply.error(400, "too_long")
        return Reply.completion(DOG, delay_s=0.3)

    endpoint.reply = reply
    (failure,) = extract_all(endpoint, tmp_path, [[["A dog. ", "Bad. ", "A cat."]]])
    assert isinstance(failure, UnusableAnswer)
    assert (read_ledger(str(tmp_path)).answered, read_ledger(str(tmp_path)).unknown_calls) == (2, 0)


def test_nothing_more_is_sent_for_a_response_that_is_rejected(endpoint: FakeOpenAI, tmp_path: Path) -> None:
    endpoint.script(Reply.error(400, "too_long"))
    extract_all(endpoint, tmp_path, [[[f"Dog {n}. " for n in range(20)]]], concurrency=2)
    assert len(endpoint.requests) <= 2


def test_who_cannot_use_the_endpoint_stops_the_others(endpoint: FakeOpenAI, tmp_path: Path) -> None:
    def reply(number: int, body: dict[str, Any]) -> Reply:
        bad = "Sub-sentence: Bad" in body["messages"][0]["content"]
        return Reply.error(401) if bad else Reply.completion(DOG, delay_s=0.05)

    endpoint.reply = reply
    good = [[f"Dog {n}."] for n in range(200)]
    results = extract_all(endpoint, tmp_path, [[["Bad."]], good], concurrency=2)
    assert all(isinstance(result, UserError) for result in results[-100:])
    assert {str(result) for result in results if isinstance(result, UserError)} == {str(results[0])}
    assert read_ledger(str(tmp_path)).answered == len(endpoint.requests) - 1


def test_retry_after_holds_every_worker(endpoint: FakeOpenAI, tmp_path: Path) -> None:
    def reply(number: int, body: dict[str, Any]) -> Reply:
        return Reply.error(429, retry_after="0.6") if number == 0 else Reply.completion(DOG, delay_s=0.1)

    endpoint.reply = reply
    extract_all(
        endpoint, tmp_path, [[[f"Dog {n}."] for n in range(5)], [[f"Cat {n}."] for n in range(5)]], concurrency=1
    )
    # One call of the other worker was under way; the two workers go on after the pause.
    early = [at for at in endpoint.times[1:] if at - endpoint.times[0] < 0.5]
    assert len(early) <= 1


def test_a_budget_stops_and_a_higher_one_goes_on(endpoint: FakeOpenAI, tmp_path: Path) -> None:
    responses = [[f"Dog {n}."] for n in range(10)]
    settings = {"price": PRICE, "budget": 4 * CALL_COST + 2.5}
    results = extract_all(endpoint, tmp_path, [responses[:5], responses[5:]], settings, max_tokens=4)
    refusals = {str(result) for result in results if isinstance(result, UserError)}
    assert len(refusals) == 1 and "raise label.extractor.budget" in refusals.pop()
    paid = len(endpoint.requests)
    assert 0 < paid * CALL_COST <= settings["budget"]
    more = settings | {"budget": 10 * CALL_COST + 2.5}
    assert extract_all(endpoint, tmp_path, [responses[:5], responses[5:]], more, max_tokens=4) == [[DOG_FACTS]] * 10
    assert len(endpoint.requests) == 10
    assert read_ledger(str(tmp_path)).prompt_tokens == 100


def test_a_schema_the_endpoint_does_not_know_stops_with_one_sentence(endpoint: FakeOpenAI, tmp_path: Path) -> None:
    message = "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model."
    endpoint.script(Reply(400, {"error": {"message": message, "type": "invalid_request_error", "code": None}}))
    (failure,) = extract_all(endpoint, tmp_path, [[[RESPONSE]]])
    assert isinstance(failure, UserError)
    assert "does not support answers that follow a JSON schema" in str(failure)


def test_a_call_that_timed_out_is_accounted_for(endpoint: FakeOpenAI, tmp_path: Path) -> None:
    endpoint.script(Reply.completion(DOG, delay_s=4))
    extract_all(endpoint, tmp_path, [[[RESPONSE]]], timeout_s=2, max_retries=0)  # long enough to connect on any machine
    totals = read_ledger(str(tmp_path))
    assert totals.failed_by_reason == {"timeout": 1}
    assert totals.unknown_calls == 1


def test_a_connection_that_ends_before_the_answer_may_be_billed(endpoint: FakeOpenAI, tmp_path: Path) -> None:
    endpoint.script(Reply(drops=True))
    (failure,) = extract_all(endpoint, tmp_path, [[[RESPONSE]]], max_retries=1)
    assert isinstance(failure, UserError) and "cannot be reached" in str(failure)
    totals = read_ledger(str(tmp_path))
    assert totals.failed_by_reason == {"connection": 2}
    assert totals.unknown_calls == 2


def test_a_call_that_could_not_be_sent_is_not_billed(endpoint: FakeOpenAI, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint.url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        extract_all(endpoint, tmp_path, [[[RESPONSE]]], max_retries=0)
    assert read_ledger(str(tmp_path)).failed_by_reason == {"connection": 1}
    assert read_ledger(str(tmp_path)).unknown_calls == 0


def test_half_a_surrogate_pair_does_not_stop_the_job(endpoint: FakeOpenAI, tmp_path: Path) -> None:
    endpoint.script(Reply.completion('{"existence": ["A \\ud83d dog."], "attribute": [], "relation": []}'))
    assert extract_all(endpoint, tmp_path, [[[RESPONSE]]]) == [[[Fact("existence", "A ? dog.")]]]
