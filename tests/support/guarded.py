"""A guard between an endpoint on loopback and a real reward service, and what its tests say to it."""

import base64
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
from openai import OpenAI

from actors.guard.service import ChatGuard, GuardSettings
from actors.rewards.http import token_digest
from fgaif_ray.config import ChatGuardConfig
from support.fake_openai import Reply, Request
from support.local_gateway import TOKEN as REWARD_TOKEN
from support.local_gateway import served
from support.reward_helpers import PROMPT, picture

GUARD_TOKEN = "a-token-of-the-guard"
ENDPOINT_KEY = "sk-of-the-endpoint"
ANSWERS = (
    "There is a red circle at the left of the picture. A big blue square is above the small green triangle.",
    "A small yellow star is visible, and the scene also has a purple cross. I can see a ring.",
    "The image shows a heart. The heart is orange. A diamond is visible at the bottom of it.",
    "There is a green square. There is a large orange triangle.",
)
USAGE = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}


def completion(texts: Iterable[str], finish_reason: str = "stop") -> dict[str, Any]:
    """A chat completion with these choices."""
    choices = [
        {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
        for index, text in enumerate(texts)
    ]
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices,
        "usage": dict(USAGE), "service_tier": "default",
    }  # fmt: skip


def chunks(text: str, size: int = 7, *, index: int = 0, usage: bool = False) -> Iterator[str]:
    """The events of a streamed answer, some characters in each."""

    def event(choices: list[Any], **more: Any) -> str:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        return f"data: {json.dumps({**head, 'choices': choices, **more})}\n\n"

    yield event([{"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
    for start in range(0, len(text), size):
        delta = {"content": text[start : start + size]}
        yield event([{"index": index, "delta": delta, "finish_reason": None}])
    yield event([{"index": index, "delta": {}, "finish_reason": "stop"}])
    if usage:
        yield event([], usage=USAGE)
    yield "data: [DONE]\n\n"


def answering(*texts: str) -> Callable[[int, Request], Reply]:
    """An endpoint that answers with the first texts, as many as are asked for, whole or as a stream of the first."""

    def reply(number: int, body: Request) -> Reply:
        if body.get("stream"):
            options = body.get("stream_options") or {}
            return Reply(parts=chunks(texts[0], usage=bool(options.get("include_usage"))))
        return Reply(body=completion(texts[: body.get("n") or 1]))

    return reply


def ask(shade: int = 0, prompt: str = PROMPT, **fields: Any) -> dict[str, Any]:
    """The body of a request about a picture."""
    url = f"data:image/png;base64,{base64.b64encode(picture(shade)).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]
    return {"model": "m", "messages": [{"role": "user", "content": content}], **fields}


@contextmanager
def guarded(upstream: str, rewards: str, **options: Any) -> Iterator[str]:
    """The root of a guard; ``options`` are keys of its section."""
    settings = GuardSettings(
        config=ChatGuardConfig(**options),
        upstream=upstream,
        rewards=rewards,
        token_digest=token_digest(GUARD_TOKEN),
        key=ENDPOINT_KEY,
        rewards_token=REWARD_TOKEN,
    )
    with served(ChatGuard(settings)) as url:
        yield url


def post(url: str, body: Any, token: str | None = GUARD_TOKEN, **options: Any) -> httpx2.Response:
    """Ask a guard."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return httpx2.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60, **options)


def client_of(url: str) -> OpenAI:
    """OpenAI's own client of a guard."""
    return OpenAI(base_url=f"{url}/v1", api_key=GUARD_TOKEN, max_retries=0, timeout=60)


def events_of(answer: httpx2.Response) -> list[dict[str, Any]]:
    """The chunks of a streamed answer; it ends as OpenAI's streams do."""
    data = [event.removeprefix("data: ") for event in answer.text.split("\n\n") if event]
    assert data.pop() == "[DONE]"
    return [json.loads(one) for one in data]


def text_of(events: Iterable[dict[str, Any]], index: int = 0) -> str:
    """The text of a streamed answer."""
    choices = [choice for event in events for choice in event["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)
