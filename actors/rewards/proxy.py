"""Protection of Serve's HTTP proxy, which stands before the gateway and takes connections of anybody.

Serve calls ``protect`` in every proxy that it starts, where the environment of the node says so:

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=actors.rewards.proxy:protect

A Ray that a job starts here has it (``actors.cluster.connect``), and so has the image of ``deploy/Dockerfile``.
"""

import re
from asyncio import BaseTransport, TimerHandle
from dataclasses import dataclass
from typing import Any, Final

import uvicorn.config
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

REQUEST_HEAD_S: Final = 30.0
"""Seconds within which a connection has to send the head of a request; uvicorn itself waits forever for it."""
REQUEST_ID: Final = b"x-request-id"
_PRINTABLE: Final = re.compile(rb"[\x21-\x7e]{1,128}")


class HurriedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, but a connection that sends no request, or half of a head, is closed."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_due: TimerHandle | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        """Wait for the first request."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._forget_head()
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        """Start the request; its body and its answer have time limits of their own."""
        self._forget_head()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request, unless it has come already."""
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None:
            self._await_head()

    def _await_head(self) -> None:
        self._forget_head()
        self._head_due = self.loop.call_later(REQUEST_HEAD_S, self.timeout_keep_alive_handler)

    def _forget_head(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None


@dataclass(frozen=True, slots=True)
class ReadableHeaders:
    """ASGI middleware: takes out headers that Serve's proxy would fail on, with an answer of its own.

    It decodes some of them as UTF-8. A request id that is not short and printable is taken out too: it would go into
    answers and logs, and Serve makes one where there is none.
    """

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if "headers" in scope:
            scope = {**scope, "headers": [pair for pair in scope["headers"] if _is_readable(*pair)]}
        await self.app(scope, receive, send)


def _is_readable(name: bytes, value: bytes) -> bool:
    if name == REQUEST_ID:
        return _PRINTABLE.fullmatch(value) is not None
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def protect() -> list[Middleware]:
    """Have this process's HTTP server close idle connections; returns the middleware that Serve adds to it."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{HurriedProtocol.__name__}"
    return [Middleware(ReadableHeaders)]
