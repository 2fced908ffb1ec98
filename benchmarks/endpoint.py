"""An OpenAI-compatible endpoint of constant latency, quick enough that what is measured is its client.

Run as a module it prints its port and serves until its standard input ends, that is, until its parent does.
"""

import argparse
import asyncio
import json
import subprocess
import sys
from types import TracebackType
from typing import Final, cast

import uvloop

from fgaif_ray.calls.garbage import spare_the_loaded

ANSWER: Final = json.dumps({"existence": ["There is a dog."], "attribute": ["The dog is brown."], "relation": []})
COMPLETION: Final = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "benchmark",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 200, "completion_tokens": 30, "total_tokens": 230},
}
MODELS: Final = {"object": "list", "data": []}
HEAD_END: Final = b"\r\n\r\n"
LENGTH: Final = b"content-length:"


def _reply(body: object) -> bytes:
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


_COMPLETION, _MODELS = _reply(COMPLETION), _reply(MODELS)


class _Connection(asyncio.Protocol):
    """HTTP/1.1 with requests one after the other, as clients send them."""

    def __init__(self, latency_s: float) -> None:
        self._latency_s = latency_s
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(HEAD_END)
        if end < 0:
            return
        head = self._received[:end].lower()
        start = head.find(LENGTH)
        length = 0 if start < 0 else int(head[start + len(LENGTH) :].split(b"\r\n", 1)[0])
        if len(self._received) < end + len(HEAD_END) + length:
            return
        self._received = b""
        if head.startswith(b"post"):
            asyncio.get_running_loop().call_later(self._latency_s, self._send, _COMPLETION)
        else:
            self._send(_MODELS)

    def _send(self, reply: bytes) -> None:
        assert self._transport is not None
        if not self._transport.is_closing():
            self._transport.write(reply)


async def _serve(latency_s: float) -> None:
    spare_the_loaded()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(latency_s), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


class Endpoint:
    """The endpoint as a child process.

    Example: ``with Endpoint(latency_s=0.1) as url: call(url)``
    """

    def __init__(self, latency_s: float) -> None:
        """Start nothing yet.

        Args:
            latency_s: seconds between a request and the answer to it.
        """
        self._latency_s = latency_s

    def __enter__(self) -> str:
        command = [sys.executable, "-m", "benchmarks.endpoint", "--latency", str(self._latency_s)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        return f"http://127.0.0.1:{int(self._process.stdout.readline())}/v1"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, required=True, help="seconds")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(parser.parse_args().latency))


if __name__ == "__main__":
    main()
