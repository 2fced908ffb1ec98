"""The guard over real HTTP, with real reward models in this process and an endpoint on loopback."""

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from support.fake_openai import FakeOpenAI, Reply
from support.guarded import (
    ANSWERS,
    ENDPOINT_KEY,
    GUARD_TOKEN,
    USAGE,
    answering,
    ask,
    chunks,
    client_of,
    completion,
    events_of,
    guarded,
    post,
    text_of,
)
from support.local_gateway import TOKEN, WEIGHTS, LocalScorer, local_gateway, served
from support.reward_helpers import PROMPT, picture

from fgaif_ray.guard.choosing import ChoiceRule, rank
from fgaif_ray.guard.judgement import AnswerJudgement, read_judgement
from fgaif_ray.guard.stripping import strip_answer
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.segments import Span
from fgaif_ray.serving.client import RetryPolicy, RewardClient, reward_item
from fgaif_ray.serving.wire import MAX_BODY_BYTES, RewardModelCard, TrainedOn

LINK = {
    "messages": [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}]}
    ]
}
TEXT_ONLY = {"model": "m", "messages": [{"role": "user", "content": "Hello."}]}


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    gateway = local_gateway(LocalScorer(tmp_path_factory.mktemp("rewards")), RewardOptions(weights=WEIGHTS))
    with served(gateway) as url:
        yield url


@pytest.fixture(scope="module")
def verdicts(rewards: str) -> list[AnswerJudgement]:
    """Of the reward service itself on each of the answers."""
    with RewardClient(rewards, token=TOKEN) as client:
        return [read_judgement(one) for one in client.score([reward_item(picture(), PROMPT, one) for one in ANSWERS])]


@pytest.fixture
def upstream() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(answering(*ANSWERS)) as server:
        server.models = Reply(body={"object": "list", "data": [{"id": "m", "object": "model"}]})
        yield server


@pytest.fixture(scope="module")
def annotating(rewards: str) -> Iterator[tuple[str, FakeOpenAI]]:
    """A guard with default settings and its endpoint."""
    with FakeOpenAI(answering(*ANSWERS)) as server, guarded(server.url, rewards) as url:
        yield url, server


def stripped(text: str, judged: AnswerJudgement, threshold: float) -> str:
    spans = [Span(one.start, one.end) for one in judged.segments]
    return strip_answer(text, spans, [one.hallucination > threshold for one in judged.segments])[0]


def between(judged: AnswerJudgement) -> float:
    """A threshold that the surest segment alone is above."""
    *_, second, first = sorted(one.hallucination for one in judged.segments)
    return (first + second) / 2


def error_of(answer: httpx2.Response) -> tuple[int, str]:
    """Status and code of an error in OpenAI's form."""
    detail = answer.json()["error"]
    assert set(answer.json()) == {"error"} and set(detail) == {"message", "type", "code", "param"}
    return answer.status_code, detail["code"]


# Annotate


def test_an_answer_is_untouched_and_its_verdicts_are_beside_it(
    annotating: tuple[str, FakeOpenAI], verdicts: list[AnswerJudgement]
) -> None:
    found = post(annotating[0], ask()).json()
    verdict = found["choices"][0].pop("fgaif")
    assert found == completion([ANSWERS[0]])
    assert [one["text"] for one in verdict["segments"]] == [one.text for one in verdicts[0].segments]
    assert verdict["hallucination"] == pytest.approx(verdicts[0].hallucination, abs=1e-3)
    assert verdict["reward"] == pytest.approx(verdicts[0].reward, abs=1e-3)


def test_every_one_of_n_answers_is_judged(annotating: tuple[str, FakeOpenAI], verdicts: list[AnswerJudgement]) -> None:
    choices = post(annotating[0], ask(n=3)).json()["choices"]
    assert [one["message"]["content"] for one in choices] == list(ANSWERS[:3])
    for choice, judged in zip(choices, verdicts, strict=False):
        assert choice["fgaif"]["hallucination"] == pytest.approx(judged.hallucination, abs=1e-3)


def test_without_an_image_nothing_is_judged(annotating: tuple[str, FakeOpenAI]) -> None:
    assert post(annotating[0], TEXT_ONLY).json()["choices"][0]["fgaif"] is None


def test_the_endpoint_gets_the_request_with_all_its_fields(annotating: tuple[str, FakeOpenAI]) -> None:
    body = ask(temperature=0.5, guided_choice=["a"], nested={"x": [1, None]})
    post(annotating[0], body)
    assert annotating[1].requests[-1] == body


def test_a_call_of_a_tool_has_no_verdicts(rewards: str, upstream: FakeOpenAI) -> None:
    body = completion(["x"])
    body["choices"][0]["message"] = {"role": "assistant", "content": None, "tool_calls": []}
    upstream.script(Reply(body=body))
    with guarded(upstream.url, rewards) as url:
        assert post(url, ask()).json()["choices"][0]["fgaif"] is None


# Strip


def test_what_is_surely_false_is_cut(rewards: str, upstream: FakeOpenAI, verdicts: list[AnswerJudgement]) -> None:
    threshold = between(verdicts[0])
    with guarded(upstream.url, rewards, mode="strip", threshold=threshold) as url:
        choice = post(url, ask()).json()["choices"][0]
    assert choice["message"]["content"] == stripped(ANSWERS[0], verdicts[0], threshold) != ANSWERS[0]
    assert [one["reason"] for one in choice["fgaif"]["cut"]] == ["hallucinated"]
    assert len(choice["fgaif"]["segments"]) == 2


def test_below_the_threshold_nothing_is_cut(rewards: str, upstream: FakeOpenAI) -> None:
    with guarded(upstream.url, rewards, mode="strip", threshold=0.9999) as url:
        choice = post(url, ask()).json()["choices"][0]
    assert choice["message"]["content"] == ANSWERS[0] and choice["fgaif"]["cut"] == []


def test_where_nothing_is_left_the_configured_words_are_the_answer(rewards: str, upstream: FakeOpenAI) -> None:
    with guarded(upstream.url, rewards, mode="strip", threshold=0.0, nothing_left="I am not sure.") as url:
        whole = post(url, ask()).json()["choices"][0]["message"]["content"]
        streamed = text_of(events_of(post(url, ask(stream=True))))
    assert whole == streamed == "I am not sure."


@pytest.mark.parametrize("stream", [False, True])
def test_one_verdict_for_a_whole_answer_cuts_nothing(tmp_path: Path, upstream: FakeOpenAI, stream: bool) -> None:
    gateway = local_gateway(LocalScorer(tmp_path), RewardOptions(weights=WEIGHTS))
    known = TrainedOn(source="shapes", images=9, responses=9, segments=20)
    cards = [RewardModelCard(id=name, version="1", trained_on=known) for name in WEIGHTS]
    models = gateway._settings.models.model_copy(update={"kind": "coarse", "models": cards})
    gateway._settings = replace(gateway._settings, models=models)
    with served(gateway) as rewards, guarded(upstream.url, rewards, mode="strip", threshold=0.0) as url:
        answer = post(url, ask(stream=stream))
    events = events_of(answer) if stream else []
    [choice] = events[-1]["choices"] if stream else answer.json()["choices"]
    assert (text_of(events) if stream else choice["message"]["content"]) == ANSWERS[0]
    assert "whole answers" in choice["fgaif"]["note"]
    assert choice["fgaif"]["trained_on"] == [known.model_dump()]


# Best of n


@pytest.mark.parametrize("rule", ["reward", "mean_reward", "hallucination"])
def test_the_best_answer_is_returned(
    rewards: str, upstream: FakeOpenAI, verdicts: list[AnswerJudgement], rule: ChoiceRule
) -> None:
    with guarded(upstream.url, rewards, mode="best-of-n", n=4, choose_by=rule) as url:
        [choice] = post(url, ask()).json()["choices"]
    assert choice["message"]["content"] == ANSWERS[rank(verdicts, rule)[0]]
    assert (upstream.requests[0]["n"], choice["index"], len(choice["fgaif"]["candidates"])) == (4, 0, 4)


def test_an_endpoint_that_gives_one_answer_is_asked_again(rewards: str, upstream: FakeOpenAI) -> None:
    upstream.reply = lambda number, body: Reply(body=completion([ANSWERS[number % 4]]))
    with guarded(upstream.url, rewards, mode="best-of-n", n=3) as url:
        found = post(url, ask(seed=5)).json()
    assert sorted(one["seed"] for one in upstream.requests) == [5, 6, 7]
    assert len(found["choices"][0]["fgaif"]["candidates"]) == 3
    assert found["usage"]["completion_tokens"] == 3 * USAGE["completion_tokens"]


def test_an_endpoint_that_refuses_n_is_asked_for_one_at_a_time(rewards: str, upstream: FakeOpenAI) -> None:
    upstream.reply = lambda number, body: (
        Reply.error(400, "bad", "n must be 1") if body["n"] > 1 else Reply(body=completion([ANSWERS[number % 4]]))
    )
    with guarded(upstream.url, rewards, mode="best-of-n", n=2) as url:
        assert len(post(url, ask()).json()["choices"][0]["fgaif"]["candidates"]) == 2


def test_a_caller_may_have_several_of_the_best(rewards: str, upstream: FakeOpenAI) -> None:
    with guarded(upstream.url, rewards, mode="best-of-n", n=3) as url:
        scores = [one["fgaif"]["reward"] for one in post(url, ask(n=2)).json()["choices"]]
        assert error_of(post(url, ask(n=4))) == (422, "invalid_request")
    assert len(scores) == 2 and scores == sorted(scores, reverse=True)


# Streams


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_streamed_answer_is_the_same_with_verdicts(
    rewards: str, upstream: FakeOpenAI, verdicts: list[AnswerJudgement], size: int
) -> None:
    upstream.script(Reply(parts=chunks(ANSWERS[0], size, usage=True)))
    with guarded(upstream.url, rewards) as url:
        events = events_of(post(url, ask(stream=True)))
    assert text_of(events) == ANSWERS[0]
    assert events[-1]["usage"] == USAGE
    *_, last = (event["choices"][0] for event in events if event["choices"])
    assert (last["finish_reason"], len(last["fgaif"]["segments"])) == ("stop", len(verdicts[0].segments))
    assert last["fgaif"]["reward"] == pytest.approx(verdicts[0].reward, abs=1e-3)


def test_a_segment_is_sent_before_the_answer_is_over(rewards: str, upstream: FakeOpenAI) -> None:
    go_on = threading.Event()

    def held() -> Iterator[str]:
        for event in chunks(ANSWERS[0], 70):
            yield event
            if "A big" in event:
                assert go_on.wait(60)

    upstream.script(Reply(parts=held()))
    headers = {"authorization": f"Bearer {GUARD_TOKEN}"}
    with guarded(upstream.url, rewards) as url:
        path = f"{url}/v1/chat/completions"
        with httpx2.stream("POST", path, json=ask(stream=True), headers=headers, timeout=60) as answer:
            lines = answer.iter_lines()
            first = next(line for line in lines if "There is a red circle" in line)
            go_on.set()
            rest = list(lines)
    assert '"segments"' in first and "A big" not in first
    assert rest[-2] == "data: [DONE]"


@pytest.mark.parametrize("number", range(len(ANSWERS)))
def test_a_stripped_stream_is_the_stripped_answer(
    rewards: str, upstream: FakeOpenAI, verdicts: list[AnswerJudgement], number: int
) -> None:
    threshold = between(verdicts[number])
    upstream.reply = answering(ANSWERS[number])
    with guarded(upstream.url, rewards, mode="strip", threshold=threshold) as url:
        whole = post(url, ask()).json()["choices"][0]
        events = events_of(post(url, ask(stream=True)))
    assert text_of(events) == whole["message"]["content"] != ANSWERS[number]
    assert events[-1]["choices"][0]["fgaif"]["cut"] == whole["fgaif"]["cut"] != []


def test_the_best_answer_comes_as_one_piece_of_a_stream(
    rewards: str, upstream: FakeOpenAI, verdicts: list[AnswerJudgement]
) -> None:
    body = ask(stream=True, stream_options={"include_usage": True})
    with guarded(upstream.url, rewards, mode="best-of-n", n=4) as url:
        events = events_of(post(url, body))
    assert text_of(events) == ANSWERS[rank(verdicts, "reward")[0]]
    assert events[-1]["usage"] == USAGE
    assert "stream" not in upstream.requests[0] and "stream_options" not in upstream.requests[0]


def test_a_stream_without_an_image_is_passed_on(annotating: tuple[str, FakeOpenAI]) -> None:
    events = events_of(post(annotating[0], {**TEXT_ONLY, "stream": True}))
    assert text_of(events) == ANSWERS[0] and events[-1]["choices"][0]["fgaif"] is None


def test_two_answers_of_a_stream_are_told_apart(rewards: str, upstream: FakeOpenAI) -> None:
    first, second = (list(chunks(text, 9, index=index)) for index, text in enumerate(ANSWERS[:2]))
    mixed = [event for pair in zip(first[:-1], second[:-1], strict=False) for event in pair]
    mixed += first[len(second) - 1 :] if len(first) > len(second) else second[len(first) - 1 : -1] + first[-1:]
    upstream.script(Reply(parts=mixed))
    with guarded(upstream.url, rewards) as url:
        events = events_of(post(url, ask(stream=True, n=2)))
    assert [text_of(events, index) for index in (0, 1)] == list(ANSWERS[:2])


def test_a_stream_that_breaks_off_ends_with_an_error(rewards: str, upstream: FakeOpenAI) -> None:
    events = [*list(chunks(ANSWERS[0], 20))[:5], 'data: {"error": {"message": "out of memory"}}\n\n']
    upstream.script(Reply(parts=events))
    with guarded(upstream.url, rewards) as url, pytest.raises(openai.APIError, match="broke the stream off"):
        list(client_of(url).chat.completions.create(**ask(stream=True)))


# OpenAI's client


def test_the_openai_client_works_unchanged(annotating: tuple[str, FakeOpenAI]) -> None:
    client = client_of(annotating[0])
    whole = client.chat.completions.create(**ask())
    assert whole.choices[0].message.content == ANSWERS[0]
    assert whole.choices[0].model_extra["fgaif"]["segments"]
    streamed = client.chat.completions.create(**ask(stream=True))
    assert "".join(one.choices[0].delta.content or "" for one in streamed) == ANSWERS[0]


# Secrets


def test_the_endpoint_gets_its_own_key_and_not_the_callers(annotating: tuple[str, FakeOpenAI]) -> None:
    answer = post(annotating[0], ask())
    assert annotating[1].authorizations[-1] == f"Bearer {ENDPOINT_KEY}"
    assert ENDPOINT_KEY not in answer.text + str(answer.headers)


@pytest.mark.parametrize("status", [400, 401, 500])
def test_what_the_endpoint_says_of_its_key_is_not_passed_on(rewards: str, upstream: FakeOpenAI, status: int) -> None:
    upstream.script(Reply.error(status, "invalid", f"the key {ENDPOINT_KEY} is wrong"))
    with guarded(upstream.url, rewards) as url:
        assert ENDPOINT_KEY not in post(url, ask()).text


@pytest.mark.parametrize("token", [None, "another", ENDPOINT_KEY])
def test_a_caller_needs_the_guards_token(annotating: tuple[str, FakeOpenAI], token: str | None) -> None:
    answer = post(annotating[0], ask(), token=token)
    assert error_of(answer) == (401, "unauthorized")
    assert answer.json()["error"]["type"] == "authentication_error"


# Refusals


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"model": "m"}, (422, "invalid_request")),
        ({"messages": []}, (422, "invalid_request")),
        (ask(n=0), (422, "invalid_request")),
        (LINK, (422, "image_not_inline")),
    ],
)
def test_what_does_not_fit_is_refused_before_the_endpoint_is_asked(
    annotating: tuple[str, FakeOpenAI], body: Any, expected: tuple[int, str]
) -> None:
    before = len(annotating[1].requests)
    assert error_of(post(annotating[0], body)) == expected
    assert len(annotating[1].requests) == before


def test_a_body_may_be_no_larger_than_the_reward_services(annotating: tuple[str, FakeOpenAI]) -> None:
    headers = {"authorization": f"Bearer {GUARD_TOKEN}", "content-type": "application/json"}
    content = b" " * (MAX_BODY_BYTES + 1)
    answer = httpx2.post(f"{annotating[0]}/v1/chat/completions", content=content, headers=headers, timeout=60)
    assert error_of(answer) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply.error(400, "bad", "no such model"), (400, "upstream_refused")),
        (Reply.error(401, "bad"), (502, "upstream_failed")),
        (Reply.error(429, "rate", retry_after="7"), (429, "upstream_busy")),
        (Reply.error(500, "bad"), (502, "upstream_failed")),
        (Reply(body="<html>"), (502, "upstream_failed")),
        (Reply(body={"choices": 3}), (502, "upstream_failed")),
        (Reply(drops=True), (502, "upstream_unreachable")),
        (Reply(hangs=True), (504, "upstream_timeout")),
    ],
    ids=lambda value: None if isinstance(value, Reply) else str(value),
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_endpoint_does_wrong_has_a_status(
    rewards: str, upstream: FakeOpenAI, reply: Reply, expected: tuple[int, str], stream: bool
) -> None:
    if stream and isinstance(reply.body, str | dict) and reply.status == 200:
        reply = Reply(parts=["data: nonsense\n\n"])
    upstream.script(reply)
    with guarded(upstream.url, rewards, request_timeout_s=0.7 if reply.hangs else 30) as url:
        answer = post(url, ask(stream=stream))
    status, code = error_of(answer)
    assert status == expected[0]
    assert code == expected[1] or reply.hangs  # the guard's own limit may be reached before the endpoint's
    if status == 429:
        assert answer.headers["retry-after"] == "7"


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("stream", [False, True])
def test_without_verdicts_there_is_no_answer(
    upstream: FakeOpenAI, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.guard.judge.RETRIES", RetryPolicy(max_retries=0))
    with guarded(upstream.url, free_address()) as url:
        assert error_of(post(url, ask(stream=stream))) == (502, "rewards_unavailable")


@pytest.mark.parametrize("mode", ["annotate", "strip", "best-of-n"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_without_verdicts_passes_where_that_is_asked_for(
    upstream: FakeOpenAI, mode: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.guard.judge.RETRIES", RetryPolicy(max_retries=0))
    with guarded(upstream.url, free_address(), mode=mode, unjudged="pass") as url:
        answer = post(url, ask(stream=stream))
    if stream:
        events = events_of(answer)
        found, verdict = text_of(events), events[-1]["choices"][0]["fgaif"]
    else:
        [choice] = answer.json()["choices"]
        found, verdict = choice["message"]["content"], choice["fgaif"]
    assert found == ANSWERS[0]
    assert verdict["segments"] is None and verdict["note"].startswith("not judged")


def test_a_link_to_an_image_passes_unjudged_where_that_is_asked_for(rewards: str, upstream: FakeOpenAI) -> None:
    with guarded(upstream.url, rewards, unjudged="pass") as url:
        [choice] = post(url, LINK).json()["choices"]
    assert choice["message"]["content"] == ANSWERS[0]
    assert "data: URL" in choice["fgaif"]["note"]


def test_an_image_that_is_none_is_the_callers_mistake(annotating: tuple[str, FakeOpenAI]) -> None:
    content = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    answer = post(annotating[0], {"messages": [{"role": "user", "content": content}]})
    assert error_of(answer) == (422, "invalid_image")


def test_a_full_guard_says_when_to_come_again(rewards: str, upstream: FakeOpenAI) -> None:
    release = threading.Event()

    def slow(number: int, body: dict[str, Any]) -> Reply:
        assert release.wait(60)
        return Reply(body=completion(ANSWERS[: body.get("n") or 1]))

    upstream.reply = slow
    with guarded(upstream.url, rewards, max_waiting_answers=5) as url:
        first = threading.Thread(target=post, args=(url, ask(n=4)))
        first.start()
        while not upstream.requests:
            pass
        answer = post(url, ask(n=2))
        release.set()
        first.join()
    assert error_of(answer) == (429, "busy")
    assert int(answer.headers["retry-after"]) >= 1


def test_a_client_that_goes_away_makes_room(rewards: str, upstream: FakeOpenAI) -> None:
    gone = threading.Event()

    def held() -> Iterator[str]:
        yield from list(chunks(ANSWERS[0], 70))[:3]
        gone.wait(60)

    upstream.reply = lambda number, body: Reply(parts=held()) if number == 0 else answering(*ANSWERS)(number, body)
    with guarded(upstream.url, rewards, max_waiting_answers=5) as url:
        headers = {"authorization": f"Bearer {GUARD_TOKEN}"}
        path = f"{url}/v1/chat/completions"
        with httpx2.stream("POST", path, json=ask(stream=True, n=5), headers=headers, timeout=60) as answer:
            lines = answer.iter_lines()
            assert "content" in next(lines)
            assert post(url, ask(n=5)).status_code == 429
        deadline = time.monotonic() + 60
        while post(url, ask(n=5)).status_code == 429:
            assert time.monotonic() < deadline
        gone.set()


# Other routes


def test_the_models_are_the_endpoints(rewards: str, upstream: FakeOpenAI) -> None:
    with guarded(upstream.url, rewards) as url:
        assert [one.id for one in client_of(url).models.list()] == ["m"]


def test_it_is_ready_where_endpoint_and_rewards_are(rewards: str, upstream: FakeOpenAI) -> None:
    with guarded(upstream.url, rewards) as url:
        assert httpx2.get(f"{url}/live").json() == httpx2.get(f"{url}/live").json() == {"status": "live"}
        assert httpx2.get(f"{url}/ready", timeout=60).status_code == 200
    for endpoint, service in ((free_address(), rewards), (upstream.url, free_address())):
        with guarded(endpoint, service) as url:
            assert error_of(httpx2.get(f"{url}/ready", timeout=60)) == (503, "not_ready")


def test_its_interface_is_documented(annotating: tuple[str, FakeOpenAI]) -> None:
    paths = httpx2.get(f"{annotating[0]}/openapi.json").json()["paths"]
    assert set(paths) == {"/v1/chat/completions", "/v1/models", "/live", "/ready"}
    assert httpx2.get(f"{annotating[0]}/docs").status_code == 200
