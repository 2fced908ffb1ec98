"""One call over HTTP, against small servers that speak it byte by byte."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest

from fgaif_ray.calls.chat_connection import Bodies, ChatConnection, Completion

BODY = Bodies({"model": "m"})([{"role": "user", "content": "Hello."}])
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"

Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


def ask(answer: Answer, url: str | None = None, timeout_s: float = 30) -> Completion | None:
    """Call a server whose answer to the head of a request is written by a function; None is the server's own URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        try:
            await answer(head, writer)
        except ConnectionError:
            return
        finally:
            writer.close()

    async def work() -> Completion | None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        if url is not None:
            patch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
            patch.setenv("NO_PROXY", "")
        connection = ChatConnection(url or f"http://127.0.0.1:{port}/v1", "secret-key", timeout_s)
        try:
            return await connection.post(BODY)
        finally:
            await connection.close()
            server.close()

    with pytest.MonkeyPatch.context() as patch:
        return asyncio.run(work())


def reply(body: bytes) -> Answer:
    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % len(body) + body)
        await writer.drain()

    return answer


def test_the_time_limit_holds_for_an_answer_that_trickles_in() -> None:
    async def trickle(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % 1000)
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.05)

    with pytest.raises(openai.APITimeoutError):
        ask(trickle, timeout_s=0.5)


def test_an_answer_that_is_cut_is_a_lost_connection() -> None:
    async def cut(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % 1000 + b'{"choices"')
        await writer.drain()

    with pytest.raises(openai.APIConnectionError) as error:
        ask(cut)
    assert not isinstance(error.value, openai.APITimeoutError)


@pytest.mark.parametrize("body", [b"<html></html>", b"[]", b"\xff\xfe"])
def test_what_is_no_json_object_is_no_completion(body: bytes) -> None:
    assert ask(reply(body)) is None


@pytest.mark.parametrize("body", [b"{}", b'{"choices": 1, "usage": []}', b'{"choices": [{"message": {"content": 7}}]}'])
def test_fields_of_another_kind_count_as_missing(body: bytes) -> None:
    assert ask(reply(body)) == Completion(None, None, None, None)


def test_the_sdk_says_with_which_headers() -> None:
    heads: list[bytes] = []

    async def note(head: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(head.lower())
        await reply(b"{}")(head, writer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_ORG_ID", "org-of-the-test")
        ask(note)
    assert b"authorization: bearer secret-key" in heads[0]
    assert b"openai-organization: org-of-the-test" in heads[0]


def test_the_proxy_of_the_environment_is_used() -> None:
    heads: list[bytes] = []

    async def note(head: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        await reply(b"{}")(head, writer)

    ask(note, url="http://endpoint.invalid/v1")
    assert heads[0].startswith(b"POST http://endpoint.invalid/v1/chat/completions ")


def test_bodies_hold_messages_and_what_requests_share() -> None:
    body: Any = json.loads(BODY)
    assert body == {"model": "m", "messages": [{"role": "user", "content": "Hello."}]}
