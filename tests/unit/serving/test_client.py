"""The clients against a local HTTP server that answers what it is told to."""

import asyncio
import copy
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tenacity

from fgaif_ray.serving.client import (
    AsyncRewardClient,
    ReplyOutcome,
    RetryPolicy,
    RewardClient,
    RewardServiceError,
    reward_item,
)
from fgaif_ray.serving.wire import MAX_BODY_BYTES, MAX_ITEMS, RewardItem, ScoredResponse

Answer = tuple[int, dict[str, str], Any]
QUICK = RetryPolicy(max_retries=2, initial_s=0.01, maximum_s=0.02)
ITEM = RewardItem(image="QUJD", prompt="Describe it.", response="A circle.")


class Server:
    """Answers each request by `answer(number, headers, body)` and keeps what it was sent."""

    def __init__(self) -> None:
        self.answer: Callable[[int, dict[str, Any]], Answer] = lambda number, body: scored(body)
        self.requests: list[tuple[dict[str, str], Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(*server.answer(0, {"items": []}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.reply(*server.answer(len(server.requests), body))

            def reply(self, status: int, headers: dict[str, str], value: Any) -> None:
                payload = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                for name, header in {"content-length": str(len(payload)), **headers}.items():
                    self.send_header(name, header)
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign] # a client may leave before its answer
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


def scored(body: dict[str, Any]) -> Answer:
    results = [
        {"response": item["response"], "segments": [], "reward": 1.0, "token_rewards": None, "model_version": "v1"}
        for item in body["items"]
    ]
    return 200, {}, {"results": results, "model_version": "v1", "request_id": "r"}


def failure(status: int, code: str, headers: dict[str, str] | None = None) -> Answer:
    return status, headers or {}, {"error": {"code": code, "message": "no", "request_id": "r1"}}


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


async def score_asynchronously(url: str, items: list[RewardItem], options: dict[str, Any]) -> list[ScoredResponse]:
    async with AsyncRewardClient(url, **options) as client:
        return await client.score(items)


def score_blocking(url: str, items: list[RewardItem], options: dict[str, Any]) -> list[ScoredResponse]:
    with RewardClient(url, **options) as client:
        return client.score(items)


def score_async(url: str, items: list[RewardItem], options: dict[str, Any]) -> list[ScoredResponse]:
    return asyncio.run(score_asynchronously(url, items, options))


Score = Callable[[str, list[RewardItem], dict[str, Any]], list[ScoredResponse]]
both = pytest.mark.parametrize("score", [score_blocking, score_async], ids=["blocking", "async"])


@both
def test_long_lists_are_sent_in_parts_and_come_back_in_order(server: Server, score: Score) -> None:
    items = [RewardItem(image="QUJD", prompt="p", response=f"text {index}") for index in range(7)]
    results = score(server.url, items, {"items_per_request": 3})
    assert [result.response for result in results] == [item.response for item in items]
    assert sorted(len(body["items"]) for _, body in server.requests) == [1, 3, 3]


@both
def test_an_empty_list_asks_nobody(server: Server, score: Score) -> None:
    assert score(server.url, [], {}) == [] and server.requests == []


@both
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_service_is_asked_again(server: Server, score: Score, status: int) -> None:
    server.answer = lambda number, body: scored(body) if number == 3 else failure(status, "busy")
    assert len(score(server.url, [ITEM], {"retries": QUICK})) == 1


@both
def test_retry_after_is_waited_for(server: Server, score: Score) -> None:
    server.answer = lambda number, body: scored(body) if number == 2 else failure(429, "busy", {"retry-after": "1"})
    started = time.monotonic()
    score(server.url, [ITEM], {"retries": QUICK})
    assert time.monotonic() - started >= 1


@both
def test_a_service_that_stays_busy_is_an_error_not_a_zero(server: Server, score: Score) -> None:
    server.answer = lambda number, body: failure(503, "unavailable")
    with pytest.raises(RewardServiceError) as error:
        score(server.url, [ITEM], {"retries": QUICK})
    assert (error.value.status, error.value.code, error.value.request_id) == (503, "unavailable", "r1")
    assert len(server.requests) == 3


@both
@pytest.mark.parametrize("status", [400, 401, 413, 422, 500])
def test_other_errors_are_not_tried_again(server: Server, score: Score, status: int) -> None:
    server.answer = lambda number, body: failure(status, "wrong")
    with pytest.raises(RewardServiceError, match="wrong"):
        score(server.url, [ITEM], {"retries": QUICK})
    assert len(server.requests) == 1


@both
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b"Path '/v1/rewards' not found. Ping http://.../-/routes for available routes."),
        (500, b"Internal Server Error"),
        (408, b"Request 1b6a timed out after 90.0s."),
        (500, {"detail": "no"}),
        (599, b""),
    ],
)
def test_what_a_proxy_answers_in_place_of_the_service_is_tried_again(
    server: Server, score: Score, status: int, body: Any
) -> None:
    """Ray's proxy answers so while there is no gateway: at its start, while it drains, and after it has died."""
    server.answer = lambda number, sent: scored(sent) if number == 3 else (status, {}, body)
    assert len(score(server.url, [ITEM], {"retries": QUICK})) == 1


@both
@pytest.mark.parametrize("status", [301, 401, 403, 405, 413])
def test_what_a_proxy_will_not_let_through_is_not_tried_again(server: Server, score: Score, status: int) -> None:
    server.answer = lambda number, body: (status, {}, b"<html>")
    with pytest.raises(RewardServiceError, match=f"answered {status}: <html>"):
        score(server.url, [ITEM], {"retries": QUICK})
    assert len(server.requests) == 1


@both
def test_another_page_than_a_reward_service_is_given_up_in_the_end(server: Server, score: Score) -> None:
    server.answer = lambda number, body: (404, {}, b"<html>Not here")
    with pytest.raises(RewardServiceError, match="answered 404: <html>Not here") as error:
        score(server.url, [ITEM], {"retries": QUICK})
    assert (error.value.code, len(server.requests)) == ("unknown", 3)


@both
@pytest.mark.parametrize("token", ["secret\n", " secret", "se cret", "s\u00e9cret", "secret\x7f", "\u201csecret\u201d"])
def test_a_token_that_no_header_can_hold_is_refused_without_being_shown(score: Score, token: str) -> None:
    with pytest.raises(ValueError, match="token has") as error:
        score("http://127.0.0.1:9", [ITEM], {"token": token})
    seen = str(error.value) + repr(error.value.__context__) + repr(error.value.__cause__)
    assert "cret" not in seen


@both
@pytest.mark.parametrize(
    "answer",
    [
        (200, {}, {"results": [], "model_version": "v", "request_id": "r"}),
        (200, {}, b"<html>"),
        (200, {}, {"results": [{"reward": None}], "model_version": "v", "request_id": "r"}),
    ],
    ids=["too few results", "no JSON", "no rewards"],
)
def test_an_answer_without_the_rewards_is_an_error(server: Server, score: Score, answer: Answer) -> None:
    server.answer = lambda number, body: answer
    with pytest.raises(RewardServiceError) as error:
        score(server.url, [ITEM], {"retries": QUICK})
    assert error.value.code == "bad_answer"


@both
def test_an_error_of_something_in_between_is_told(server: Server, score: Score) -> None:
    server.answer = lambda number, body: (418, {}, b"teapot")
    with pytest.raises(RewardServiceError, match="teapot"):
        score(server.url, [ITEM], {"retries": QUICK})


@both
def test_nobody_there_is_an_error(score: Score) -> None:
    with pytest.raises(RewardServiceError) as error:
        score("http://127.0.0.1:9", [ITEM], {"retries": QUICK})
    assert error.value.code == "no_answer"


@both
def test_a_slow_answer_is_an_error(server: Server, score: Score) -> None:
    release = threading.Event()
    server.answer = lambda number, body: scored(body) if release.wait(10) else failure(500, "late")
    with pytest.raises(RewardServiceError, match="Timeout"):
        score(server.url, [ITEM], {"timeout_s": 0.2, "retries": RetryPolicy(max_retries=0)})
    release.set()


@both
def test_the_token_comes_from_the_environment(server: Server, score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGAIF_REWARD_TOKEN", "secret")
    score(server.url, [ITEM], {})
    score(server.url, [ITEM], {"token": "mine"})
    assert [headers["authorization"] for headers, _ in server.requests] == ["Bearer secret", "Bearer mine"]


def test_delays_grow_up_to_the_maximum(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answer = lambda number, body: failure(503, "unavailable")
    delays: list[float] = []
    monkeypatch.setattr(tenacity.nap, "time", SimpleNamespace(sleep=delays.append))
    with pytest.raises(RewardServiceError):
        score_blocking(server.url, [ITEM], {"retries": RetryPolicy(max_retries=5, initial_s=1, maximum_s=8)})
    assert len(delays) == 5
    assert all(longest / 2 <= delay <= longest for delay, longest in zip(delays, [1, 2, 4, 8, 8], strict=True))


def test_an_item_holds_the_image_file(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(b"ABC")
    assert reward_item(path, "p", "r").image == reward_item(b"ABC", "p", "r").image == "QUJD"


def test_an_item_holds_several_image_files() -> None:
    item = reward_item([b"ABC", b"ABD"], "Compare.", "r")
    assert (item.image, item.images, item.image_fields) == (None, ["QUJD", "QUJE"], ("QUJD", "QUJE"))
    assert reward_item([b"ABC"], "p", "r") == reward_item(b"ABC", "p", "r")
    assert reward_item(b"ABC", "p", "r").image_fields == ("QUJD",)


def test_the_json_of_an_item_of_one_image_is_as_ever() -> None:
    sent = json.loads(reward_item(b"ABC", "p", "r").model_dump_json(exclude_none=True))
    assert sent == {"image": "QUJD", "prompt": "p", "response": "r"}


@pytest.mark.parametrize("images", [{}, {"image": "QUJD", "images": ["QUJD"]}, {"images": []}, {"images": ["A"] * 33}])
def test_an_item_has_either_an_image_or_some(images: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="image"):
        RewardItem(prompt="p", response="r", **images)


def test_an_item_needs_a_response_or_ids() -> None:
    with pytest.raises(ValueError, match="response_token_ids"):
        reward_item(b"ABC", "p")


# Parts of a list


@both
def test_images_that_are_too_large_together_are_sent_apart(server: Server, score: Score) -> None:
    items = [RewardItem(image="A" * (MAX_BODY_BYTES // 3), prompt="p", response=str(index)) for index in range(4)]
    assert [result.response for result in score(server.url, items, {})] == ["0", "1", "2", "3"]
    assert sorted(len(body["items"]) for _, body in server.requests) == [2, 2]


@pytest.mark.parametrize("options", [{"items_per_request": 0}, {"items_per_request": MAX_ITEMS + 1}])
def test_requests_that_the_service_would_refuse_are_not_made(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="items_per_request"):
        RewardClient("http://127.0.0.1:9", **options)


def test_a_url_without_http_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="http://"):
        RewardClient("127.0.0.1:8000")


# Each item for itself


def score_each_blocking(url: str, items: list[RewardItem], options: dict[str, Any]) -> list[ReplyOutcome]:
    with RewardClient(url, **options) as client:
        return client.score_each(items)


def score_each_async(url: str, items: list[RewardItem], options: dict[str, Any]) -> list[ReplyOutcome]:
    async def score() -> list[ReplyOutcome]:
        async with AsyncRewardClient(url, **options) as client:
            return await client.score_each(items)

    return asyncio.run(score())


both_each = pytest.mark.parametrize("score_each", [score_each_blocking, score_each_async], ids=["blocking", "async"])
ScoreEach = Callable[[str, list[RewardItem], dict[str, Any]], list[ReplyOutcome]]


@both_each
@pytest.mark.parametrize("refused", [set(), {0}, {2, 5}, set(range(7))])
def test_a_refused_item_costs_the_others_nothing(server: Server, score_each: ScoreEach, refused: set[int]) -> None:
    bad = {str(index) for index in refused}

    def answer(number: int, body: dict[str, Any]) -> Answer:
        return failure(422, "invalid_image") if bad & {item["response"] for item in body["items"]} else scored(body)

    server.answer = answer
    items = [RewardItem(image="QUJD", prompt="p", response=str(index)) for index in range(7)]
    outcomes = score_each(server.url, items, {"items_per_request": 4})
    for index, outcome in enumerate(outcomes):
        if index in refused:
            assert isinstance(outcome, RewardServiceError) and outcome.code == "invalid_image"
        else:
            assert isinstance(outcome, ScoredResponse) and outcome.response == str(index)
    assert len(outcomes) == 7


@both_each
@pytest.mark.parametrize("status", [401, 404, 500, 503])
def test_trouble_that_is_not_with_the_items_is_an_error(server: Server, score_each: ScoreEach, status: int) -> None:
    server.answer = lambda number, body: failure(status, "wrong")
    with pytest.raises(RewardServiceError, match="wrong"):
        score_each(server.url, [ITEM, ITEM], {"retries": RetryPolicy(max_retries=0)})
    assert len(server.requests) == 1


# Errors


@both
@pytest.mark.parametrize("reward", [float("nan"), float("inf"), "1.0x", None])
def test_a_reward_that_is_no_number_is_an_error(server: Server, score: Score, reward: object) -> None:
    def answer(number: int, body: dict[str, Any]) -> Answer:
        status, headers, value = scored(body)
        value["results"][0]["reward"] = reward
        return status, headers, value

    server.answer = answer
    with pytest.raises(RewardServiceError) as error:
        score(server.url, [ITEM], {"retries": QUICK})
    assert error.value.code == "bad_answer"


def test_an_error_keeps_its_fields_on_the_way_to_another_process() -> None:
    error = RewardServiceError("no", status=503, code="busy", request_id="r1")
    arrived = copy.copy(error)  # by the same protocol as pickle
    assert (str(arrived), arrived.status, arrived.code, arrived.request_id) == ("no", 503, "busy", "r1")


def test_what_is_not_a_reward_service_is_told(server: Server) -> None:
    server.answer = lambda number, body: (200, {}, {"hello": "world"})
    with RewardClient(server.url) as client, pytest.raises(RewardServiceError, match="not a reward service"):
        client.models()


def test_the_async_client_asks_whether_the_service_is_ready(server: Server) -> None:
    async def ready(url: str) -> bool:
        async with AsyncRewardClient(url) as client:
            return await client.is_ready()

    assert asyncio.run(ready(server.url)) and not asyncio.run(ready("http://127.0.0.1:9"))
