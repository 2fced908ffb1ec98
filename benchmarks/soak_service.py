"""The reward service under a steady load, for as long as is asked for."""

import asyncio
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx2

from benchmarks import PAPER_SETUP
from benchmarks.rewards import SMALL_REQUEST, make_load, make_models
from benchmarks.soak_samples import Sampler
from fgaif_ray.config import load_config
from fgaif_ray.serving.client import AsyncRewardClient, RewardServiceError
from fgaif_ray.serving.wire import TOKEN_VARIABLE

if TYPE_CHECKING:
    from fgaif_ray.serving.wire import RewardItem

RESPONSES: Final = 480
SATURATING: Final = 16
"""Small requests in flight: more than the replicas work at, and less than the service turns away."""
SATURATED_S: Final = 20.0
SHARE_OF_CAPACITY: Final = 0.5
REFUSED_EVERY: Final = 20
"""A request that the service has to refuse comes after so many good ones."""
MOST_WAITING: Final = 64
"""Requests in flight; a service that falls behind gets no more until it answers."""


async def capacity(url: str, requests: Sequence["RewardItem"]) -> float:
    """Responses per second at saturation, after as long a time to warm up."""
    parts = _small(requests)
    numbers = itertools.count()
    began = time.monotonic() + SATURATED_S
    end = began + SATURATED_S
    scored = 0

    async def ask_again_and_again(client: AsyncRewardClient) -> None:
        nonlocal scored
        while time.monotonic() < end:
            found = await client.score(parts[next(numbers) % len(parts)])
            scored += len(found) if began <= time.monotonic() < end else 0

    async with AsyncRewardClient(url, concurrency=SATURATING) as client:
        await asyncio.gather(*(ask_again_and_again(client) for _ in range(SATURATING)))
    return max(scored, 1) / SATURATED_S


async def steady(url: str, requests: Sequence["RewardItem"], per_second: float, seconds: float) -> Counter[str]:
    """Send small requests at random times for some seconds; what became of them."""
    parts = _small(requests)
    generator, outcomes = random.Random(0), Counter[str]()
    waiting: set[asyncio.Task[None]] = set()
    token = os.environ.get(TOKEN_VARIABLE)
    headers = {"authorization": f"Bearer {token}"} if token else {}

    async def ask(part: Sequence["RewardItem"]) -> None:
        try:
            outcomes["scored"] += len(await client.score(part))
        except RewardServiceError as error:
            outcomes["turned away" if error.status == httpx2.codes.TOO_MANY_REQUESTS else "failed"] += 1

    async def ask_wrongly() -> None:
        try:
            reply = await plain.post(f"{url}/v1/rewards", json={"items": [{"image": "none"}]})
        except httpx2.HTTPError:
            outcomes["failed"] += 1
        else:
            outcomes["refused" if reply.status_code == httpx2.codes.UNPROCESSABLE_CONTENT else "failed"] += 1

    async with AsyncRewardClient(url, concurrency=MOST_WAITING) as client, httpx2.AsyncClient(headers=headers) as plain:
        end, sent = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            if len(waiting) < MOST_WAITING:
                wrong = sent % REFUSED_EVERY == REFUSED_EVERY - 1
                task = asyncio.create_task(ask_wrongly() if wrong else ask(parts[sent % len(parts)]))
                waiting.add(task)
                task.add_done_callback(waiting.discard)
                sent += 1
            else:
                outcomes["held back"] += 1
            await asyncio.sleep(generator.expovariate(per_second / SMALL_REQUEST))
        await asyncio.gather(*waiting)
    return outcomes


def _small(requests: Sequence["RewardItem"]) -> list[Sequence["RewardItem"]]:
    return [requests[start : start + SMALL_REQUEST] for start in range(0, len(requests), SMALL_REQUEST)]


def soak_service(folder: Path, seconds: float, sampler_of: Callable[[int], Sampler]) -> tuple[Sampler, Counter[str]]:
    """Serve untrained reward models, and ask them at about half of what they can do.

    Args:
        folder: of the run.
        seconds: of steady load.
        sampler_of: makes the sampler of a process.
    """
    from actors.cluster.connect import connect
    from actors.rewards import service

    root = Path(__file__).resolve().parent.parent
    config = load_config(root / "configs" / "shapes.yaml", [*PAPER_SETUP, f"run.dir={folder}/run"])
    requests = make_load(RESPONSES).requests
    models = make_models(config, folder / "models")
    with sampler_of(os.getpid()) as sampler, connect(config):
        info = service.deploy(config, models)
        try:
            most = asyncio.run(capacity(info.url, requests))
            per_second = SHARE_OF_CAPACITY * most
            print(f"service: {most:.0f} responses/s at saturation, {per_second:.0f} from now on", flush=True)
            sampler.begin()
            outcomes = asyncio.run(steady(info.url, requests, per_second, seconds))
        finally:
            service.shutdown(config.serve.app_name)
    return sampler, outcomes
