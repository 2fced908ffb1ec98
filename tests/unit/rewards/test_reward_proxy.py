"""Serve's proxy with its protection: the same uvicorn, protocol and middleware, in this process, over real sockets."""

import asyncio
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from actors.rewards import proxy

HEAD_S = 0.5


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Say which headers came; slowly where the path says so."""
    if scope["path"] == "/slow":
        await asyncio.sleep(3 * HEAD_S)
    seen = [value for name, value in scope["headers"] if name not in (b"host", b"accept-encoding")]
    body = b" ".join(seen)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def started(keep_alive_s: int) -> Iterator[tuple[str, int]]:
    app: Any = answer
    for middleware in proxy.protect():
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)
    config = uvicorn.Config(app, port=0, log_level="error", lifespan="off", timeout_keep_alive=keep_alive_s)
    server = uvicorn.Server(config)
    listener = config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield listener.getsockname()
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    monkeypatch.setattr(proxy, "REQUEST_HEAD_S", HEAD_S)
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", uvicorn.config.HTTP_PROTOCOLS["auto"])
    with started(keep_alive_s=60) as where:  # so that the time-out of the head is the one that is seen
        yield where


def closed(connection: socket.socket) -> bool:
    connection.settimeout(30)
    return connection.recv(1) == b""


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow"])
def test_a_connection_without_a_request_is_closed(address: tuple[str, int], sent: bytes) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(sent)
        assert closed(connection)


def test_a_second_request_that_stays_half_is_closed(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET / HT")
        assert closed(connection)


def test_a_request_may_take_longer_than_its_head(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        connection.settimeout(30)
        both = b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n" * 2  # the second one waits for the first
        connection.sendall(both)
        received = b""
        while received.count(b"HTTP/1.1 200") < 2:
            more = connection.recv(1000)
            assert more
            received += more


@pytest.mark.parametrize(
    ("name", "value", "arrives"),
    [
        ("x-request-id", b"step-7", True),
        ("x-request-id", "é".encode(), False),
        ("x-request-id", b"\xff", False),
        ("x-request-id", b"two words", False),
        ("x-request-id", b"7" * 129, False),
        ("x-request-timeout-seconds", b"\xff", False),
        ("x-request-timeout-seconds", b"20", True),
        ("x-note", "é".encode(), True),
    ],
)
def test_headers_that_serve_would_fail_on_are_taken_out(
    address: tuple[str, int], name: str, value: bytes, arrives: bool
) -> None:
    connection = http.client.HTTPConnection(*address, timeout=30)
    connection.putrequest("GET", "/")
    connection.putheader(name, value)
    connection.endheaders()
    assert connection.getresponse().read() == (value if arrives else b"")
    connection.close()
