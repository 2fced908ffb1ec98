"""The fact extractor: the real OpenAI client against a real local HTTP server that follows a script."""

import asyncio
import pickle
import random
import socket
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import httpx2
import openai
import pytest
from support.fact_extraction import DOG_FACTS, RESPONSE, make_extractor
from support.fake_openai import DOG, FakeOpenAI, Reply

from fgaif_ray.calls import chat_caller
from fgaif_ray.calls.endpoint_errors import retry_after_s
from fgaif_ray.calls.unusable import UnusableAnswer
from fgaif_ray.errors import UserError
from fgaif_ray.feedback.extractor import FactExtractor
from fgaif_ray.records import Fact


@pytest.fixture
def endpoint() -> Iterator[FakeOpenAI]:
    with FakeOpenAI() as server:
        yield server


@pytest.fixture(autouse=True)
def quick_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_caller, "FIRST_WAIT_S", 0.01)


def extract(extractor: FactExtractor, *segments: str) -> list[list[Fact]]:
    async def run() -> list[list[Fact]]:
        try:
            return await extractor.extract("".join(segments), list(segments))
        finally:
            await extractor.close()

    return asyncio.run(run())


def test_facts_come_back_in_the_order_of_the_sub_sentences(endpoint: FakeOpenAI) -> None:
    def reply(number: int, body: dict[str, Any]) -> Reply:
        segment = body["messages"][0]["content"].split("Sub-sentence: ")[1].splitlines()[0]
        answer = {"existence": [segment], "attribute": [], "relation": []}
        return Reply.completion(answer, delay_s=0.1 if segment == "A cat." else 0)

    endpoint.reply = reply
    facts = extract(make_extractor(endpoint), "A cat. ", "A dog. ", "A cow.")
    assert [[fact.text for fact in segment] for segment in facts] == [["A cat."], ["A dog."], ["A cow."]]


def test_a_request_is_greedy_bounded_and_constrained_by_the_schema(endpoint: FakeOpenAI) -> None:
    extract(make_extractor(endpoint, max_tokens=77), RESPONSE)
    (request,) = endpoint.requests
    assert (request["model"], request["temperature"], request["max_completion_tokens"]) == ("annotator", 0, 77)
    assert request["response_format"]["json_schema"]["strict"] is True
    assert endpoint.authorizations == ["Bearer key"]


def test_calls_and_tokens_are_counted(endpoint: FakeOpenAI) -> None:
    extractor = make_extractor(endpoint)
    extract(extractor, "A cat. ", "A dog.")
    usage = extractor.usage
    assert (usage.calls, usage.retries, usage.repairs) == (2, 0, 0)
    assert (usage.prompt_tokens, usage.completion_tokens) == (20, 8)


def test_response_mode_makes_one_call(endpoint: FakeOpenAI) -> None:
    endpoint.script(Reply.completion({"segments": [DOG, DOG]}))
    extractor = make_extractor(endpoint, prompt="extract-v1", mode="response")
    assert extract(extractor, "A dog. ", "That dog.") == [DOG_FACTS, DOG_FACTS]
    assert extractor.usage.calls == 1


def test_sub_sentences_without_words_cost_no_call(endpoint: FakeOpenAI) -> None:
    assert extract(make_extractor(endpoint), "...") == [[]]
    assert endpoint.requests == []


def test_as_many_calls_in_flight_as_allowed_and_no_more(endpoint: FakeOpenAI) -> None:
    three_arrived = threading.Barrier(3, timeout=60)

    def reply(number: int, body: dict[str, Any]) -> Reply:
        three_arrived.wait()
        return Reply.completion(DOG)

    endpoint.reply = reply
    extract(make_extractor(endpoint, concurrency=3, timeout_s=90), *(f"Dog number {n}. " for n in range(12)))
    assert endpoint.most_in_flight == 3


def test_retry_after_is_waited_for(endpoint: FakeOpenAI) -> None:
    endpoint.script(Reply.error(429, retry_after="0.4"), Reply.completion(DOG))
    extractor = make_extractor(endpoint)
    assert extract(extractor, RESPONSE) == [DOG_FACTS]
    assert endpoint.times[1] - endpoint.times[0] >= 0.4
    assert extractor.usage.retries == 1


def test_back_off_is_drawn_from_a_range_that_doubles(endpoint: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    ranges: list[tuple[float, float]] = []
    monkeypatch.setattr(random, "uniform", lambda low, high: ranges.append((low, high)) or 0.0)
    monkeypatch.setattr(chat_caller, "LONGEST_WAIT_S", 0.05)
    endpoint.script(Reply.error(500))
    with pytest.raises(UnusableAnswer):
        extract(make_extractor(endpoint, max_retries=4), RESPONSE)
    assert ranges == [(0, 0.01), (0, 0.02), (0, 0.04), (0, 0.05)]


def retry_after(header: str) -> float:
    response = httpx2.Response(429, headers={"retry-after": header}, request=httpx2.Request("POST", "http://a"))
    return retry_after_s(openai.RateLimitError("slow down", response=response, body=None))


@pytest.mark.parametrize(("header", "seconds"), [("0.5", 0.5), ("7", 7), ("-1", 0), ("soon", 0), ("nan", 0)])
def test_retry_after_is_read_as_a_number(header: str, seconds: float) -> None:
    assert retry_after(header) == seconds


def test_retry_after_is_read_as_a_date() -> None:
    assert 3000 < retry_after(formatdate(time.time() + 3600, usegmt=True)) <= 3600
    assert retry_after(formatdate(time.time() - 3600, usegmt=True)) == 0


@pytest.mark.parametrize("status", [408, 409, 500, 502, 503])
def test_a_failure_that_passes_is_tried_again(endpoint: FakeOpenAI, status: int) -> None:
    endpoint.script(Reply.error(status), Reply.completion(DOG))
    assert extract(make_extractor(endpoint), RESPONSE) == [DOG_FACTS]


def test_the_sdk_adds_no_retries_of_its_own(endpoint: FakeOpenAI) -> None:
    endpoint.script(Reply.error(500))
    extractor = make_extractor(endpoint, max_retries=1)
    with pytest.raises(UnusableAnswer, match="server: the endpoint failed"):
        extract(extractor, RESPONSE)
    assert len(endpoint.requests) == extractor.usage.calls == 2


def test_an_answer_that_does_not_come_rejects_the_row(endpoint: FakeOpenAI) -> None:
    endpoint.script(Reply.completion(DOG, delay_s=0.5))
    with pytest.raises(UnusableAnswer, match=r"timeout: no answer within 0\.1 s"):
        extract(make_extractor(endpoint, timeout_s=0.1, max_retries=0), RESPONSE)


def test_a_request_the_endpoint_refuses_rejects_the_row(endpoint: FakeOpenAI) -> None:
    endpoint.script(Reply.error(400, "context_length_exceeded"))
    with pytest.raises(UnusableAnswer, match=r"rejected: .*context_length_exceeded"):
        extract(make_extractor(endpoint), RESPONSE)
    assert len(endpoint.requests) == 1


def test_a_bad_answer_is_repaired_with_its_error_shown(endpoint: FakeOpenAI) -> None:
    endpoint.script(Reply.completion("Facts: a dog"), Reply.completion(DOG))
    extractor = make_extractor(endpoint)
    assert extract(extractor, RESPONSE) == [DOG_FACTS]
    *_, shown, complaint = endpoint.requests[1]["messages"]
    assert shown == {"role": "assistant", "content": "Facts: a dog"}
    assert "the answer is not JSON" in complaint["content"]
    assert extractor.usage.repairs == 1


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply.completion("Facts: a dog"), "malformed"),
        (Reply.completion('{"existence": ["There', "length"), "length"),
        (Reply.completion("{" + " " * 200, "length"), "white_space"),
        (Reply.completion(""), "empty"),
        (Reply.completion({"facts": []}), "shape"),
        (Reply.completion({"existence": ["图片里有一只棕色的狗。"], "attribute": [], "relation": []}), "language"),
        (Reply.completion("", refusal="I cannot help with that."), "refusal"),
        (Reply.completion("", "content_filter"), "refusal"),
        (Reply(body={"id": "1", "object": "chat.completion", "choices": []}), "empty"),
        (Reply(body={"id": "1", "object": "chat.completion", "choices": [{"index": 0}]}), "empty"),
        (Reply(body={"error": {"message": "try later"}}), "empty"),
    ],
)
def test_an_answer_bad_twice_rejects_the_row(endpoint: FakeOpenAI, reply: Reply, reason: str) -> None:
    endpoint.script(reply)
    with pytest.raises(UnusableAnswer) as caught:
        extract(make_extractor(endpoint), RESPONSE)
    assert caught.value.reason == reason
    assert len(endpoint.requests) == 2


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply.error(401), "refused the API key"),
        (Reply.error(403), "refused the API key"),
        (Reply.error(404, "model_not_found"), "has no model 'annotator'"),
        (Reply.error(429, "insufficient_quota", retry_after="0"), "quota is used up"),
        (Reply.error(429, retry_after="86400"), "stayed overloaded"),
        (Reply(body="<html>Welcome</html>"), "does not answer like an OpenAI-compatible one"),
    ],
)
def test_an_endpoint_that_cannot_be_used_stops_at_once(endpoint: FakeOpenAI, reply: Reply, message: str) -> None:
    endpoint.script(reply)
    with pytest.raises(UserError, match=message):
        extract(make_extractor(endpoint), RESPONSE)
    assert len(endpoint.requests) == 1


def test_the_key_is_in_no_message(endpoint: FakeOpenAI) -> None:
    endpoint.reply = lambda number, body: Reply.error(401, "Incorrect API key provided: secret-key")
    extractor = make_extractor(endpoint, api_key="secret-key")
    with pytest.raises(UserError) as caught:
        extract(extractor, RESPONSE)
    assert "secret-key" not in f"{caught.value} {extractor!r}"


def test_an_endpoint_that_stays_overloaded_stops_after_the_last_try(endpoint: FakeOpenAI) -> None:
    endpoint.script(Reply.error(503))
    with pytest.raises(UserError, match=r"stayed overloaded \(status 503\) over 3 tries"):
        extract(make_extractor(endpoint), RESPONSE)
    assert len(endpoint.requests) == 3


def test_nothing_listens(endpoint: FakeOpenAI) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint.url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        with pytest.raises(UserError, match=r"http://127\.0\.0\.1:\d+/v1 cannot be reached: start it"):
            extract(make_extractor(endpoint), RESPONSE)


def test_a_prompt_that_does_not_fit_the_mode_is_refused(endpoint: FakeOpenAI) -> None:
    with pytest.raises(UserError, match=r"extract-short-v2 cannot be used with mode 'response'"):
        make_extractor(endpoint, mode="response")


def test_an_extractor_can_be_sent_to_a_worker_and_used_in_several_loops(endpoint: FakeOpenAI) -> None:
    extractor = pickle.loads(pickle.dumps(make_extractor(endpoint)))  # noqa: S301
    assert extract(extractor, RESPONSE) == [DOG_FACTS]
    assert extract(extractor, RESPONSE) == [DOG_FACTS]
