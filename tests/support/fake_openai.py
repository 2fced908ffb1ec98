"""A local OpenAI-compatible server that answers, or misbehaves, on command, and keeps an account of its own."""

import json
import random
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

DOG = {"existence": ["There is a dog."], "attribute": [], "relation": []}
USAGE = (10, 4)
"""Prompt and completion tokens of a completion."""
HANG_POLL_S = 0.1

Request = dict[str, Any]


@dataclass
class Reply:
    """What the server answers: a status with headers and a body, after a delay; or nothing, and it waits (``hangs``) or
    ends the connection (``drops``). A body in ``parts`` is sent part by part, as each of them is there."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0
    hangs: bool = False
    drops: bool = False
    parts: Iterable[str] | None = None

    @classmethod
    def completion(
        cls,
        content: object,
        finish_reason: str = "stop",
        usage: tuple[int, int] = USAGE,
        refusal: str | None = None,
        **keywords: Any,
    ) -> "Reply":
        text = content if isinstance(content, str) else json.dumps(content)
        message = {"role": "assistant", "content": text, "refusal": refusal}
        body = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "annotator",
            "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
            "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)},
        }
        return cls(body=body, **keywords)

    @classmethod
    def error(cls, status: int, code: str = "", message: str | None = None, **headers: str) -> "Reply":
        body = {"error": {"message": message or f"failed {code}", "type": code, "code": code}}
        return cls(status, body, {name.replace("_", "-"): value for name, value in headers.items()})

    @property
    def tokens(self) -> tuple[int, int]:
        """Prompt and completion tokens that it bills."""
        usage = self.body.get("usage") if self.status == 200 and isinstance(self.body, dict) else None
        return (usage["prompt_tokens"], usage["completion_tokens"]) if usage else (0, 0)


class FakeOpenAI:
    """Chat completions on loopback; ``reply`` decides by the number and the body of the request.

    Example: ``with FakeOpenAI(lambda number, body: Reply.completion(DOG)) as server: call(server.url)``
    """

    def __init__(self, reply: Callable[[int, Request], Reply] | None = None) -> None:
        self.reply = reply or (lambda number, body: Reply.completion(DOG))
        self.models = Reply(body={"object": "list", "data": []})
        """The answer to whoever lists models."""
        self.requests: list[Request] = []
        self.authorizations: list[str | None] = []
        self.times: list[float] = []
        self.billed: list[tuple[Request, tuple[int, int]]] = []
        """Requests that were worked on, with their tokens: the bill, whether or not the client got the answer."""
        self.statuses: Counter[int] = Counter()
        """Of replies; one that hangs or drops has none."""
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        self.closing = False
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def script(self, *replies: Reply) -> None:
        """Answer with these, one after the other; the last one again and again."""
        self.reply = lambda number, body: replies[min(number, len(replies) - 1)]

    @property
    def tokens(self) -> tuple[int, int]:
        """Prompt and completion tokens of the bill."""
        return sum(tokens for _, (tokens, _) in self.billed), sum(tokens for _, (_, tokens) in self.billed)

    def close(self) -> None:
        """End the server."""
        self.closing = True
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def take(self, body: Request, authorization: str | None) -> Reply:
        """Account for a request; returns the reply to it."""
        with self.lock:
            number = len(self.requests)
            self.requests.append(body)
            self.authorizations.append(authorization)
            self.times.append(time.monotonic())
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        reply = self.reply(number, body)
        time.sleep(reply.delay_s)
        with self.lock:
            self.in_flight -= 1
            if not (reply.hangs or reply.drops):
                self.statuses[reply.status] += 1
                if reply.status == 200:
                    self.billed.append((body, reply.tokens))
        return reply


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, owner: FakeOpenAI) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.owner = owner


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(self.server.owner.models)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        reply = self.server.owner.take(body, self.headers["authorization"])
        if reply.hangs or reply.drops:
            # A client that gives up closes its connection.
            while reply.hangs and not (
                self.server.owner.closing or select.select([self.connection], [], [], HANG_POLL_S)[0]
            ):
                pass
            self.close_connection = True
        elif reply.parts is not None:
            self._send_parts(reply.parts)
        else:
            self._send(reply)

    def _send_parts(self, parts: Iterable[str]) -> None:
        """As a stream of server-sent events."""
        try:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for part in parts:
                content = part.encode()
                self.wfile.write(b"%x\r\n%b\r\n" % (len(content), content))
            self.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client gave up waiting

    def _send(self, reply: Reply) -> None:
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

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionResetError:
            self.close_connection = True  # the client was killed between two requests

    def log_message(self, *arguments: object) -> None:
        pass


class Misbehaving:
    """Replies as ``answer`` does, except to shares of the calls.

    Which calls those are depends on what is asked and on how often it was asked before, not on the order of calls.
    """

    def __init__(
        self,
        answer: Callable[[int, Request], Reply],
        *,
        overloaded: float = 0,
        failing: float = 0,
        malformed: float = 0,
        hanging: float = 0,
        retry_after_s: float = 0.02,
    ) -> None:
        """Args:
        answer: gives the replies to all other calls.
        overloaded: share of calls that are answered with 429 and ``Retry-After``.
        failing: share of 500.
        malformed: share of answers that are no JSON; they are billed.
        hanging: share of calls that are never answered.
        retry_after_s: what the overloaded ones ask for.
        """
        self._answer = answer
        self._asked: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._kinds = (
            (overloaded, lambda reply: Reply.error(429, "rate_limit", retry_after=f"{retry_after_s:g}")),
            (failing, lambda reply: Reply.error(500)),
            (malformed, lambda reply: Reply.completion("I see a dog.", usage=reply.tokens)),
            (hanging, lambda reply: Reply(hangs=True)),
        )

    def __call__(self, number: int, body: Request) -> Reply:
        question = json.dumps(body["messages"])
        with self._lock:
            self._asked[question] += 1
            times = self._asked[question]
        drawn = random.Random(f"{times} {question}").random()
        reply = self._answer(number, body)
        for share, change in self._kinds:
            if drawn < share:
                return change(reply)
            drawn -= share
        return reply
