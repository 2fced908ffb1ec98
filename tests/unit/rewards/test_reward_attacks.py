"""Requests that are meant to exhaust the reward service, over real HTTP: they cost little, and nobody else waits."""

import asyncio
import base64
import json
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from PIL import Image
from pydantic import BaseModel, ValidationError
from support.image_files import encoded
from support.local_gateway import TOKEN, WEIGHTS, LocalScorer, local_gateway, served
from support.reward_helpers import CHECKPOINT, PROMPT, RESPONSE, picture
from support.reward_service_helpers import error_of

from actors.rewards import gateway as gateway_module
from actors.rewards import http as http_module
from actors.rewards import requests as requests_module
from actors.rewards.gateway import RewardGateway
from actors.rewards.preparers import Preparers
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.rewards.scoring import ScoredBatch, ScoringBatch
from fgaif_ray.serving.wire import (
    MAX_BODY_KEYS,
    MAX_BODY_VALUES,
    MAX_QUERY_CHARACTERS,
    RemoteRewardRequest,
    RewardRequest,
)

OPTIONS = RewardOptions(weights=WEIGHTS, value="expected")
HEADERS = {"authorization": f"Bearer {TOKEN}"}
LONGEST_ERROR = 1000
"""Characters of any error's body."""


def gif_claiming(side: int, colour: int = 0) -> bytes:
    """35 bytes of one pixel that say they are a square of that side."""
    head = b"GIF89a" + struct.pack("<HH", side, side) + b"\xf0\0\0" + bytes([colour, 0, 0, 255, 255, 255])
    return head + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;"


def item(**changes: Any) -> dict[str, Any]:
    return {"image": text_of(picture()), "prompt": PROMPT, "response": RESPONSE} | changes


def text_of(file: bytes) -> str:
    return base64.b64encode(file).decode()


def post(url: str, body: Any, path: str = "/v1/rewards") -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx2.post(url + path, content=content, headers={**HEADERS, "content-type": "application/json"}, timeout=60)


class SlowScorer(LocalScorer):
    """Scores a list at a time, as quickly as it is told to."""

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        super().__init__(folder)
        self.seconds = seconds
        self.let_go = threading.Event()
        self.let_go.set()

    async def remote(self, batch: ScoringBatch) -> ScoredBatch:
        self.batches.append(batch)
        return await asyncio.get_running_loop().run_in_executor(self.worker, self._score_slowly, batch)

    def _score_slowly(self, batch: ScoringBatch) -> ScoredBatch:
        self.let_go.wait()
        time.sleep(self.seconds)
        return self.score_now(batch)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> SlowScorer:
    return SlowScorer(tmp_path_factory.mktemp("rewards"))


@pytest.fixture(scope="module")
def gateway(scorer: SlowScorer) -> RewardGateway:
    return local_gateway(scorer, OPTIONS)


@pytest.fixture(scope="module")
def url(gateway: RewardGateway) -> Iterator[str]:
    with served(gateway) as url:
        yield url


# Images


def test_small_files_of_many_pixels_are_refused_before_a_model_sees_them(url: str, scorer: SlowScorer) -> None:
    seen = len(scorer.batches)
    gifs = [item(image=text_of(gif_claiming(8000, colour))) for colour in range(4)]
    assert error_of(post(url, {"items": gifs})) == (422, "invalid_image")
    pixels = encoded(Image.new("1", (8000, 8000)))
    assert len(pixels) < 10_000
    assert error_of(post(url, {"items": [item(image=text_of(pixels))]})) == (413, "image_too_large")
    assert len(scorer.batches) == seen


def test_the_images_of_a_request_are_bounded_together(
    url: str, scorer: SlowScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests_module, "MAX_REQUEST_PIXELS", 2 * 60 * 60)
    seen = len(scorer.batches)
    answer = post(url, {"items": [item(image=text_of(picture(shade))) for shade in range(6)]})
    assert error_of(answer) == (413, "image_too_large")
    assert "together" in answer.json()["error"]["message"]
    assert len(scorer.batches) == seen
    # The same image counts once, as do all responses to one prompt.
    assert post(url, {"items": [item(image=text_of(picture(shade % 2))) for shade in range(6)]}).status_code == 200


def test_images_of_many_pixels_are_scored_a_few_at_a_time(
    url: str, scorer: SlowScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests_module, "LIST_PIXELS", 3 * 60 * 60)
    seen = len(scorer.batches)
    assert post(url, {"items": [item(image=text_of(picture(shade))) for shade in range(8)]}).status_code == 200
    assert sorted(map(len, scorer.batches[seen:])) == [2, 3, 3]
    # A list of three counts for the 16 items that a batch may have, so that it is not merged with others.
    assert sorted(batch.size for batch in scorer.batches[seen:]) == [11, 16, 16]


# Work


def test_a_response_of_wrong_bytes_is_answered(url: str) -> None:
    for ids in ([99] * 4096, [130] * 4096, [1] * 4096):
        answer = post(url, {"items": [item(response=None, response_token_ids=ids)]})
        assert (answer.status_code == 200) or error_of(answer) == (422, "not_scorable")


def test_a_response_of_emphasis_is_answered(url: str) -> None:
    assert post(url, {"items": [item(response="A red circle. " + "*" * 40 + "It is red.")]}).status_code == 200


def test_an_item_that_takes_too_long_to_read_fails_and_no_other_caller_does(
    scorer: SlowScorer,
) -> None:
    # Seconds of a processor against milliseconds of the usual item, so that the budget tells them apart on any machine.
    large = [text_of(encoded(Image.new("RGB", (4000, 4000), (shade, 0, 0)))) for shade in range(12)]
    costly = {"items": [item() | {"image": None, "images": large}]}
    gateway = local_gateway(scorer, OPTIONS)
    gateway._preparers = Preparers(CHECKPOINT, 2, seconds=0.5)
    with served(gateway) as url, ThreadPoolExecutor(6) as pool:
        attacks = [pool.submit(post, url, costly) for _ in range(3)]
        others = [pool.submit(post, url, {"items": [item()]}) for _ in range(3)]
        assert [error_of(attack.result()) for attack in attacks] == [(422, "too_costly")] * 3
        assert [other.result().status_code for other in others] == [200] * 3


class Stopped:
    """A block in which the processes that prepare items do not run."""

    def __init__(self, gateway: RewardGateway) -> None:
        self._processes = gateway._preparers.process_ids()

    def __enter__(self) -> None:
        for process_id in self._processes:
            os.kill(process_id, signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        for process_id in self._processes:
            os.kill(process_id, signal.SIGCONT)


def test_the_service_is_not_ready_while_nothing_can_be_prepared(
    url: str, gateway: RewardGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert httpx2.get(f"{url}/ready", timeout=60).status_code == 200
    with monkeypatch.context() as context:
        context.setattr(gateway_module, "PROBE_TIMEOUT_S", 0.5)
        with Stopped(gateway):
            assert error_of(httpx2.get(f"{url}/ready", timeout=60)) == (503, "not_ready")
            assert httpx2.get(f"{url}/live").status_code == 200
    assert httpx2.get(f"{url}/ready", timeout=60).status_code == 200


def test_what_a_request_has_not_begun_ends_with_it(scorer: SlowScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = local_gateway(scorer, OPTIONS, timeout_s=0.5, preparers=1)
    ask, asked = gateway._preparers._ask, []

    def count(*arguments: Any) -> Any:
        asked.append(arguments)
        return ask(*arguments)

    monkeypatch.setattr(gateway._preparers, "_ask", count)
    with served(gateway) as url:
        with Stopped(gateway):
            answers = [error_of(post(url, {"items": [item()] * 20})) for _ in range(2)]
        assert post(url, {"items": [item()]}).status_code == 200
    assert answers == [(504, "timeout")] * 2
    assert len(asked) == 1 + 1  # the first item, and that of the last request


def test_lists_that_are_not_scored_yet_end_with_their_request(scorer: SlowScorer) -> None:
    scorer.let_go.clear()
    seen = len(scorer.batches)
    with served(local_gateway(scorer, OPTIONS, timeout_s=3.0, max_batch_size=4)) as url:
        answer = post(url, {"items": [item()] * 40})
        scorer.let_go.set()
        assert post(url, {"items": [item()]}).status_code == 200
    assert error_of(answer) == (504, "timeout")
    assert len(scorer.batches) == seen + 2 + 1


def test_a_small_request_does_not_wait_for_the_whole_of_a_large_one(scorer: SlowScorer) -> None:
    scorer.let_go.clear()
    seen = len(scorer.batches)
    with served(local_gateway(scorer, OPTIONS, max_batch_size=4)) as url, ThreadPoolExecutor(2) as pool:
        large = pool.submit(post, url, {"items": [item()] * 28})
        wait_for(lambda: len(scorer.batches) == seen + 2)
        small = pool.submit(post, url, {"items": [item(response="A red circle.")]})
        wait_for(lambda: len(scorer.batches) == seen + 3)
        scorer.let_go.set()
        assert [small.result().status_code, large.result().status_code] == [200, 200]
    assert [len(batch) for batch in scorer.batches[seen:]] == [4, 4, 1, *[4] * 5]


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Bodies


MANY = 100_000
REWARDS, REMOTE = "/v1/rewards", "/get_reward"
HOSTILE: list[tuple[str, str, type[BaseModel], Any]] = [
    ("numbers for prompts", REMOTE, RemoteRewardRequest, {"query": [], "labels": [], "prompts": [1] * MANY}),
    ("many prompts", REMOTE, RemoteRewardRequest, {"query": [], "labels": [], "prompts": ["a"] * MANY}),
    ("many labels", REMOTE, RemoteRewardRequest, {"query": [], "labels": [1] * MANY, "prompts": []}),
    (
        "a long query",
        REMOTE,
        RemoteRewardRequest,
        {"query": ["a" * (MAX_QUERY_CHARACTERS + 1)], "labels": [""], "prompts": ["a"]},
    ),
    ("unknown fields", REWARDS, RewardRequest, {"items": [], **{f"field {number}": 1 for number in range(MANY)}}),
    ("a long field", REWARDS, RewardRequest, {"items": [], "a" * MANY: 1}),
    ("empty items", REWARDS, RewardRequest, {"items": [{}] * MANY}),
    ("wrong items", REWARDS, RewardRequest, {"items": [1] * 200}),
    ("items of unknown fields", REWARDS, RewardRequest, {"items": [dict.fromkeys(map(str, range(MANY)), 1)] * 2}),
    ("wrong ids", REWARDS, RewardRequest, {"items": [item(response_token_ids=["a"] * 8000)] * 200}),
    ("many ids", REWARDS, RewardRequest, {"items": [item(response_token_ids=[1] * MANY)]}),
    ("wrong images", REWARDS, RewardRequest, {"items": [{"images": [1] * MANY, "prompt": "a", "response": "b"}]}),
]


@pytest.mark.parametrize(("path", "body"), [case[1::2] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_a_body_of_many_mistakes_gets_a_short_answer(url: str, path: str, body: Any) -> None:
    answer = post(url, body, path)
    assert error_of(answer) in {(422, "invalid_request"), (413, "body_too_large")}
    assert len(answer.text) < LONGEST_ERROR


@pytest.mark.parametrize(("model", "body"), [case[2:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_a_body_of_many_mistakes_has_few_errors(model: type[BaseModel], body: Any) -> None:
    with pytest.raises(ValidationError) as error:
        model.model_validate(body)
    assert error.value.error_count() < 40


@pytest.mark.parametrize(
    "body",
    [
        b'{"query":[],"labels":[],"prompts":[' + b"1," * 1_500_000 + b"1]}",
        b'{"items":[' + b"{}," * (MAX_BODY_VALUES // 2 + 1) + b"{}]}",
        b"{" + b",".join(b'"%d" :0' % key for key in range(MAX_BODY_KEYS + 1)) + b"}",
    ],
    ids=["numbers", "objects", "keys"],
)
def test_a_body_of_many_values_is_not_parsed(url: str, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def loads(*_: Any, **__: Any) -> Any:
        raise AssertionError("the body was parsed")

    with monkeypatch.context() as context:
        context.setattr(json, "loads", loads)
        answer = post(url, body)
    assert error_of(answer) == (413, "body_too_large")


@pytest.mark.parametrize("path", [REWARDS, REMOTE])
def test_a_deep_body_is_refused(url: str, path: str) -> None:
    answer = post(url, b'{"items":' + b"[" * 200_000 + b"]" * 200_000 + b"}", path)
    assert answer.status_code in {400, 422} and len(answer.text) < LONGEST_ERROR


def begin_upload(url: str, sent: int, announced: int) -> socket.socket:
    """A request that announces a body and sends a part of it."""
    address = urlsplit(url)
    upload = socket.create_connection((address.hostname, address.port))
    head = f"POST {REWARDS} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {announced}\r\n\r\n"
    upload.sendall(head.encode() + b" " * sent)
    return upload


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_bodies_of_all_callers_are_bounded_and_those_of_callers_that_went_away_are_let_go(
    gateway: RewardGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_module, "MAX_HELD_BYTES", 100_000)
    good = json.dumps({"items": [item()]}).encode()
    with served(gateway) as url:
        upload = begin_upload(url, sent=100_000 - len(good) // 2, announced=1_000_000)
        until(lambda: post(url, good).status_code == 429)
        answer = post(url, good)
        assert (error_of(answer), answer.headers["retry-after"]) == ((429, "busy"), "1")
        upload.close()
        until(lambda: post(url, good).status_code == 200)


# One caller and the others


def remote_body(label: Any, **changes: Any) -> dict[str, Any]:
    return {"query": [f"USER: hi {RESPONSE}"], "prompts": ["USER: hi"], "labels": [label]} | changes


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (remote_body(json.dumps({"image": text_of(picture()), "prompt": "\ud800"})), "invalid_text"),
        (remote_body({"image": text_of(picture()), "prompt": "\ud800"}), "invalid_text"),
        (remote_body("[" * 100_000), "invalid_label"),
        (remote_body({"image": text_of(picture()), "prompt": "a" * 20_000}), "too_long"),
        (remote_body({"image": text_of(picture()), "prompt": PROMPT}, query=["USER: hi " + "a" * 200_000]), "too_long"),
    ],
    ids=["surrogate in text", "surrogate", "deep label", "long question", "long response"],
)
def test_a_label_or_query_that_cannot_be_read_is_its_callers(url: str, body: dict[str, Any], code: str) -> None:
    assert error_of(post(url, body, REMOTE)) == (422, code)


@pytest.mark.parametrize("field", ["prompt", "response"])
def test_half_a_character_is_refused(url: str, field: str) -> None:
    assert error_of(post(url, {"items": [item(**{field: "a\udfff"})]})) == (422, "invalid_request")


# The queue


def test_under_twice_the_load_what_would_wait_too_long_is_told_when_to_come_again(scorer: SlowScorer) -> None:
    """A scorer of 40 items a second gets 320 at once, and may let 2 s of them wait."""
    scorer.seconds = 0.1
    gateway = local_gateway(scorer, OPTIONS, max_batch_size=4, max_wait_s=2.0)
    with served(gateway) as url, ThreadPoolExecutor(40) as pool:
        warm = list(pool.map(lambda _: post(url, {"items": [item()] * 4}), range(6)))
        answers = list(pool.map(lambda _: post(url, {"items": [item()] * 8}), range(40)))
        scorer.seconds = 0.0
        refused = [answer for answer in answers if answer.status_code != 200]
        assert {answer.status_code for answer in warm} == {200}
        assert 0 < len(refused) < len(answers)
        for answer in refused:
            assert error_of(answer) == (429, "busy")
            assert 1 <= int(answer.headers["retry-after"]) <= 30
        assert post(url, {"items": [item()] * 8}).status_code == 200


def test_a_full_service_refuses_before_it_reads_a_body(scorer: SlowScorer) -> None:
    scorer.let_go.clear()
    gateway = local_gateway(scorer, OPTIONS, max_batch_size=4, max_waiting_items=8)
    with served(gateway) as url, ThreadPoolExecutor(1) as pool:
        waits = pool.submit(post, url, {"items": [item()] * 8})
        wait_for(lambda: gateway._admission.waiting == 8)
        address = urlsplit(url)
        head = (
            f"POST /v1/rewards HTTP/1.1\r\nhost: {address.netloc}\r\nauthorization: Bearer {TOKEN}\r\n"
            "content-type: application/json\r\ncontent-length: 60000000\r\n\r\n"
        )
        with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
            connection.sendall(head.encode())
            assert b" 429 " in connection.recv(4096).splitlines()[0]
        scorer.let_go.set()
        assert waits.result().status_code == 200
