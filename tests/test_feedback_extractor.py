"""The fact extractor: the real OpenAI client against a real local HTTP server that follows a script."""

import asyncio
import json
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from fgaif_ray.errors import UserError
from fgaif_ray.feedback import extractor as extractor_module
from fgaif_ray.feedback.extraction import ExtractionError, Fact
from fgaif_ray.feedback.extractor import FactExtractor
from fgaif_ray.feedback.prompts import load_prompt

DOG = {"existence": ["There is a dog."], "attribute": [], "relation": []}
DOG_FACTS = [Fact("existence", "There is a dog.")]
RESPONSE = "A dog is here."


@dataclass
class Reply:
    """What the server answers: a status with headers and a body, after a delay."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0

    @classmethod
    def completion(cls, content: object, finish_reason: str = "stop", **keywords: Any) -> "Reply":
        text = content if isinstance(content, str) else json.dumps(content)
        message = {"role": "assistant", "content": text}
        body = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "annotator",
            "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14},
        }
        return cls(body=body, **keywords)

    @classmethod
    def error(cls, status: int, code: str = "", **headers: str) -> "Reply":
        body = {"error": {"message": f"failed {code}", "type": code, "code": code}}
        return cls(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


class Endpoint:
    """A chat-completions endpoint on loopback; `reply` decides by the number and body of the request."""

    def __init__(self) -> None:
        self.reply: Callable[[int, dict[str, Any]], Reply] = lambda number, body: Reply.completion(DOG)
        self.requests: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.times: list[float] = []
        self.in_flight = self.most_in_flight = 0
        lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    number = len(endpoint.requests)
                    endpoint.requests.append(body)
                    endpoint.authorizations.append(self.headers["authorization"])
                    endpoint.times.append(time.monotonic())
                    endpoint.in_flight += 1
                    endpoint.most_in_flight = max(endpoint.most_in_flight, endpoint.in_flight)
                reply = endpoint.reply(number, body)
                time.sleep(reply.delay_s)
                with lock:
                    endpoint.in_flight -= 1
                is_text = isinstance(reply.body, str)
                content = (reply.body if is_text else json.dumps(reply.body)).encode()
                headers = {"content-type": "text/html" if is_text else "application/json"} | reply.headers
                try:
                    self.send_response(reply.status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the client gave up waiting

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def script(self, *replies: Reply) -> None:
        """Answer with these, one after the other; the last one again and again."""
        self.reply = lambda number, body: replies[min(number, len(replies) - 1)]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def quick_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extractor_module, "FIRST_WAIT_S", 0.01)


def make_extractor(endpoint: Endpoint, **options: Any) -> FactExtractor:
    settings: dict[str, Any] = {
        "api_key": "key",
        "prompt": load_prompt("extract-short-v1"),
        "max_retries": 2,
        "timeout_s": 30,
    }
    return FactExtractor(endpoint.url, model="annotator", **(settings | options))


def extract(extractor: FactExtractor, *segments: str) -> list[list[Fact]]:
    async def run() -> list[list[Fact]]:
        try:
            return await extractor.extract("".join(segments), list(segments))
        finally:
            await extractor.close()

    return asyncio.run(run())


def test_facts_come_back_in_the_order_of_the_sub_sentences(endpoint: Endpoint) -> None:
    def reply(number: int, body: dict[str, Any]) -> Reply:
        segment = body["messages"][0]["content"].split("Sub-sentence: ")[1].splitlines()[0]
        answer = {"existence": [segment], "attribute": [], "relation": []}
        return Reply.completion(answer, delay_s=0.1 if segment == "A cat." else 0)

    endpoint.reply = reply
    facts = extract(make_extractor(endpoint), "A cat. ", "A dog. ", "A cow.")
    assert [[fact.text for fact in segment] for segment in facts] == [["A cat."], ["A dog."], ["A cow."]]


def test_a_request_is_greedy_bounded_and_constrained_by_the_schema(endpoint: Endpoint) -> None:
    extract(make_extractor(endpoint, max_tokens=77, extra_body={"top_k": 1}), RESPONSE)
    (request,) = endpoint.requests
    assert (request["model"], request["temperature"], request["max_completion_tokens"]) == ("annotator", 0, 77)
    assert request["response_format"]["json_schema"]["strict"] is True
    assert request["top_k"] == 1
    assert endpoint.authorizations == ["Bearer key"]


def test_calls_and_tokens_are_counted(endpoint: Endpoint) -> None:
    extractor = make_extractor(endpoint)
    extract(extractor, "A cat. ", "A dog.")
    usage = extractor.usage
    assert (usage.calls, usage.retries, usage.repairs) == (2, 0, 0)
    assert (usage.prompt_tokens, usage.completion_tokens) == (20, 8)


def test_response_mode_makes_one_call(endpoint: Endpoint) -> None:
    endpoint.script(Reply.completion({"segments": [DOG, DOG]}))
    extractor = make_extractor(endpoint, prompt=load_prompt("extract-v1"), mode="response")
    assert extract(extractor, "A dog. ", "That dog.") == [DOG_FACTS, DOG_FACTS]
    assert extractor.usage.calls == 1


def test_sub_sentences_without_words_cost_no_call(endpoint: Endpoint) -> None:
    assert extract(make_extractor(endpoint), "...") == [[]]
    assert endpoint.requests == []


def test_as_many_calls_in_flight_as_allowed_and_no_more(endpoint: Endpoint) -> None:
    three_arrived = threading.Barrier(3, timeout=60)

    def reply(number: int, body: dict[str, Any]) -> Reply:
        three_arrived.wait()
        return Reply.completion(DOG)

    endpoint.reply = reply
    extract(make_extractor(endpoint, concurrency=3, timeout_s=90), *(f"Dog number {n}. " for n in range(12)))
    assert endpoint.most_in_flight == 3


def test_retry_after_is_waited_for(endpoint: Endpoint) -> None:
    endpoint.script(Reply.error(429, retry_after="0.4"), Reply.completion(DOG))
    extractor = make_extractor(endpoint)
    assert extract(extractor, RESPONSE) == [DOG_FACTS]
    assert endpoint.times[1] - endpoint.times[0] >= 0.4
    assert extractor.usage.retries == 1


@pytest.mark.parametrize("status", [408, 409, 500, 502, 503])
def test_a_failure_that_passes_is_tried_again(endpoint: Endpoint, status: int) -> None:
    endpoint.script(Reply.error(status), Reply.completion(DOG))
    assert extract(make_extractor(endpoint), RESPONSE) == [DOG_FACTS]


def test_the_sdk_adds_no_retries_of_its_own(endpoint: Endpoint) -> None:
    endpoint.script(Reply.error(500))
    extractor = make_extractor(endpoint, max_retries=1)
    with pytest.raises(ExtractionError, match="server: the endpoint failed"):
        extract(extractor, RESPONSE)
    assert len(endpoint.requests) == extractor.usage.calls == 2


def test_an_answer_that_does_not_come_rejects_the_row(endpoint: Endpoint) -> None:
    endpoint.script(Reply.completion(DOG, delay_s=0.5))
    with pytest.raises(ExtractionError, match=r"timeout: no answer within 0\.1 s"):
        extract(make_extractor(endpoint, timeout_s=0.1, max_retries=0), RESPONSE)


def test_a_request_the_endpoint_refuses_rejects_the_row(endpoint: Endpoint) -> None:
    endpoint.script(Reply.error(400, "context_length_exceeded"))
    with pytest.raises(ExtractionError, match=r"rejected: .*context_length_exceeded"):
        extract(make_extractor(endpoint), RESPONSE)
    assert len(endpoint.requests) == 1


def test_a_bad_answer_is_repaired_with_its_error_shown(endpoint: Endpoint) -> None:
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
        (Reply(body={"id": "1", "object": "chat.completion", "choices": []}), "empty"),
    ],
)
def test_an_answer_bad_twice_rejects_the_row(endpoint: Endpoint, reply: Reply, reason: str) -> None:
    endpoint.script(reply)
    with pytest.raises(ExtractionError) as caught:
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
        (Reply(body="<html>Welcome</html>"), "does not answer as an OpenAI-compatible one"),
    ],
)
def test_an_endpoint_that_cannot_be_used_stops_at_once(endpoint: Endpoint, reply: Reply, message: str) -> None:
    endpoint.script(reply)
    with pytest.raises(UserError, match=message):
        extract(make_extractor(endpoint), RESPONSE)
    assert len(endpoint.requests) == 1


def test_the_key_is_in_no_message(endpoint: Endpoint) -> None:
    endpoint.reply = lambda number, body: Reply.error(401, "Incorrect API key provided: secret-key")
    extractor = make_extractor(endpoint, api_key="secret-key")
    with pytest.raises(UserError) as caught:
        extract(extractor, RESPONSE)
    assert "secret-key" not in f"{caught.value} {extractor!r}"


def test_an_endpoint_that_stays_overloaded_stops_after_the_last_try(endpoint: Endpoint) -> None:
    endpoint.script(Reply.error(503))
    with pytest.raises(UserError, match=r"stayed overloaded \(status 503\) over 3 tries"):
        extract(make_extractor(endpoint), RESPONSE)
    assert len(endpoint.requests) == 3


def test_nothing_listens(endpoint: Endpoint) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint.url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        with pytest.raises(UserError, match=r"http://127\.0\.0\.1:\d+/v1 cannot be reached: start it"):
            extract(make_extractor(endpoint), RESPONSE)


def test_a_prompt_that_does_not_fit_the_mode_is_refused(endpoint: Endpoint) -> None:
    with pytest.raises(UserError, match=r"extract-short-v1 cannot be used with mode 'response'"):
        make_extractor(endpoint, mode="response")


def test_an_extractor_can_be_sent_to_a_worker_and_used_in_several_loops(endpoint: Endpoint) -> None:
    extractor = pickle.loads(pickle.dumps(make_extractor(endpoint)))  # noqa: S301
    assert extract(extractor, RESPONSE) == [DOG_FACTS]
    assert extract(extractor, RESPONSE) == [DOG_FACTS]
