"""Calls per second of fact extraction against an endpoint of constant latency.

Ideal are C calls in flight all the time: C / latency calls per second. A worker does here what it does in the job
(responses in blocks of which some are open at a time, keys, claims, permits of a rate limit, one file of answers and
one of the account); C is shared out among several workers where one process cannot keep so many calls in flight. Run
as a module it is one such worker.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import uvloop

from benchmarks.endpoint import HEAD_END, Endpoint
from fgaif_ray.calls.client import CallClient
from fgaif_ray.calls.coordinator import CallCoordinator
from fgaif_ray.calls.garbage import spare_the_loaded
from fgaif_ray.config import ExtractorConfig, LabelConfig
from fgaif_ray.fact_types import DEFAULT
from fgaif_ray.feedback.extractor import FactExtractor
from fgaif_ray.feedback.pending import OPEN_BLOCKS
from fgaif_ray.feedback.prompts import load_prompt

LATENCY_S: Final = 0.1
CONCURRENCIES: Final = (8, 64, 256)
ROUNDS: Final = 3
SECONDS: Final = 20.0
"""Of a round, at the ideal rate: the last calls leave slots idle for a latency, which is a fiftieth of 5 seconds."""
SENTENCE: Final = "In picture {number}, a brown dog with a red collar stands on the green grass next to a white ball. "
SEGMENTS: Final = 4
"""Sub-sentences of a response, each a call."""
BLOCK: Final[int] = LabelConfig.model_fields["batch_size"].default
"""Responses."""
NO_LIMIT: Final = 1e9
"""A rate limit that never holds: permits are asked for as with one that does."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Of one number of calls in flight."""

    per_second: float
    ideal: float
    workers: int
    cpu_ms: float
    """Processor time of the workers per call, in milliseconds."""


def endpoint_rate(concurrency: int, seconds: float) -> float:
    """Calls per second of the endpoint, asked by a client that does nothing but write and read."""
    with Endpoint(LATENCY_S) as url:
        return asyncio.run(_bare_rate(url, concurrency, seconds))


async def _bare_rate(url: str, concurrency: int, seconds: float) -> float:
    address = urlsplit(url)
    assert address.hostname is not None and address.port is not None
    host, port = address.hostname, address.port
    body = b" " * 2000
    request = b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    loop = asyncio.get_running_loop()
    answered = 0

    class Client(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self._transport = transport
            transport.write(request)

        def data_received(self, data: bytes) -> None:
            nonlocal answered
            assert HEAD_END in data  # an answer of a few hundred bytes comes in one piece
            answered += 1
            self._transport.write(request)

    transports = [(await loop.create_connection(Client, host, port))[0] for _ in range(concurrency)]
    await asyncio.sleep(2 * LATENCY_S)
    before, start = answered, time.perf_counter()
    await asyncio.sleep(seconds)
    rate = (answered - before) / (time.perf_counter() - start)
    for transport in transports:
        transport.abort()
    return rate


def extraction_rate(concurrency: int, workers: int, rounds: int = ROUNDS, seconds: float = SECONDS) -> Rate:
    """The best of some rounds.

    Args:
        concurrency: calls in flight of all workers together.
        workers: processes among which they are shared out.
        rounds: number of rounds.
        seconds: how long a round takes at the ideal rate.
    """
    share = concurrency // workers
    rows = max(1, int(seconds / LATENCY_S) * share // SEGMENTS)
    calls = SEGMENTS * rows
    ideal = concurrency / LATENCY_S
    best = Rate(0.0, ideal, workers, 0.0)
    with Endpoint(LATENCY_S) as url:
        command = [sys.executable, "-m", "benchmarks.labelling_extraction", url, str(share), str(rows), str(rounds)]
        running = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(workers)
        ]
        for worker in running:
            assert worker.stdout is not None
            worker.stdout.readline()  # it is warm
        for _ in range(rounds):
            for worker in running:
                assert worker.stdin is not None
                worker.stdin.write("go\n")
                worker.stdin.flush()
            ends = [json.loads(worker.stdout.readline()) for worker in running if worker.stdout is not None]
            wall = max(end["end"] for end in ends) - min(end["start"] for end in ends)
            cpu_ms = 1e3 * sum(end["cpu"] for end in ends) / (calls * workers)
            rate = Rate(calls * workers / wall, ideal, workers, cpu_ms)
            best = max(best, rate, key=lambda found: found.per_second)
        for worker in running:
            worker.communicate()
    return best


async def _work(url: str, concurrency: int, rows: int, rounds: int, run: str) -> None:
    config = ExtractorConfig.model_validate(
        {"base_url": url, "model": "m", "concurrency": concurrency, "requests_per_minute": NO_LIMIT}
    )
    client = CallClient(CallCoordinator(config, run), config, run)
    extractor = FactExtractor(config, load_prompt(config.prompt, DEFAULT), url, "key", client)
    number = 0

    async def extract_block(size: int) -> None:
        nonlocal number
        responses = [
            [SENTENCE.format(number=number + SEGMENTS * row + segment) for segment in range(SEGMENTS)]
            for row in range(size)
        ]
        number += SEGMENTS * size
        await asyncio.gather(*(extractor.extract("".join(segments), segments) for segments in responses))
        await client.flush()

    async def extract(count: int) -> None:
        blocks = iter([min(BLOCK, count - start) for start in range(0, count, BLOCK)])

        async def extract_blocks() -> None:
            for block in blocks:
                await extract_block(block)

        await asyncio.gather(*(extract_blocks() for _ in range(OPEN_BLOCKS)))

    spare_the_loaded()
    await extract(concurrency)
    print("warm", flush=True)
    for _ in range(rounds):
        sys.stdin.readline()
        start, cpu = time.monotonic(), time.process_time()
        await extract(rows)
        end = {"start": start, "end": time.monotonic(), "cpu": time.process_time() - cpu}
        print(json.dumps(end), flush=True)
    await extractor.close()
    await client.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        concurrency, rows, rounds = map(int, sys.argv[2:5])
        # The event loop of an asynchronous Ray actor.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_work(sys.argv[1], concurrency, rows, rounds, folder))
