"""Speed of the reward service, as ratios that are measured in one run.

    python -m benchmarks.rewards [--quick]

Reward models of the embedded world with random adapters: what they answer makes no difference to their speed (how
right they are is what `jobs.experiment unified` compares). Everything runs on this machine, the clients too. The last
line is one JSON object:

* ``http_over_inprocess``: responses per second through HTTP at saturation, over those of the same models in one process
  that may use every core, in batches of the size of the requests;
* ``added_p99_ms``: 99th percentile of a small request's latency at half of the load that saturates the service in
  requests of that size, less that of a bare forward pass over the same responses;
* ``added_p99_over_pass``: the same, over that pass;
* ``gateway_cpu_ms``: processor time of the gateway and the processes that prepare for it, for a request of one item;
* ``shared_over_separate_memory``: memory of the replicas with ``placement: shared``, over that of three services;
* ``shared_over_separate_time``: time for the same requests at saturation, likewise;
* ``multitask_over_separate_time``: time with one adapter with three heads in one replica, over that of three services.

The first four are of the default, ``placement: shared``. How busy the machine was is printed beside every latency.
"""

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import psutil
from PIL import Image

from benchmarks import PAPER_SETUP
from fgaif_ray.config import Config, change_config, load_config
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.serving.client import AsyncRewardClient, RewardClient, reward_item

if TYPE_CHECKING:
    from fgaif_ray.rewards.encoding import ScoringItem
    from fgaif_ray.rewards.model import RewardModel
    from fgaif_ray.serving.wire import RewardItem

ENVIRONMENT: Final = {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "TOKENIZERS_PARALLELISM": "false"}
REQUEST_SIZE: Final = 32
"""Responses of a request at saturation, and of a batch in one process."""
SMALL_REQUEST: Final = 4
"""Responses of a request whose latency is measured."""
ALONE: Final = 96
"""Requests of one item whose cost is measured."""
IN_FLIGHT: Final = 8
"""Requests that saturate the service: more than its replicas can work at."""
GIB: Final = 1 << 30


@dataclass(frozen=True)
class Load:
    """The same responses for the service and for a process of one's own."""

    requests: list["RewardItem"]
    items: list["ScoringItem"]


@dataclass(frozen=True)
class Served:
    """What a service did."""

    per_second: float
    """Responses, at saturation."""
    small_per_second: float
    """Responses, at saturation in small requests."""
    p99_s: float
    """Latency of a small request at half of that load."""
    utilisation: float
    """Of the machine's processors meanwhile."""
    gateway_s: float
    """Processor time of the gateway for a request of one item."""
    memory_gib: float
    """Of the replicas, shared pages divided between those who share them."""


def make_load(count: int) -> Load:
    """Scenes and what the policy could say of them."""
    from fgaif_ray.rewards.encoding import ScoringItem
    from fgaif_ray.segments import split_segments
    from fgaif_ray.shapes.captions import CAPTION_PROMPTS, POLICY_ERRORS, write_caption
    from fgaif_ray.shapes.render import render
    from fgaif_ray.shapes.scenes import draw_scene

    requests, items = [], []
    for index in range(count):
        scene, generator = draw_scene("train", index, 0), random.Random(index)
        image: Image.Image = render(scene)
        prompt, text = generator.choice(CAPTION_PROMPTS), write_caption(scene, POLICY_ERRORS, generator)
        requests.append(reward_item(image, prompt, text))
        items.append(ScoringItem([image], prompt, [text[span.start : span.end] for span in split_segments(text)]))
    return Load(requests, items)


def make_models(config: Config, folder: Path) -> dict[str, str]:
    """Write untrained reward models of the configuration's kind."""
    from fgaif_ray.rewards.kinds import reward_tasks
    from fgaif_ray.rewards.model import RewardModel
    from fgaif_ray.rewards.model_files import save_reward_model
    from fgaif_ray.vlm.backbone import load_backbone

    model = RewardModel(load_backbone(config.rewards.backbone, config.rewards.dtype))
    for seed, task in enumerate(reward_tasks(config.rewards.kind, config.run.type_names)):
        model.add_adapter(task.name, task.heads, config.rewards.lora, seed, task.granularity)
        for fact_type in task.fact_types:
            save_reward_model(model, fact_type, folder / fact_type, task.head_of(fact_type))
    return {fact_type: str(folder / fact_type) for fact_type in config.run.type_names}


def in_process(model: "RewardModel", items: Sequence["ScoringItem"], rounds: int) -> tuple[float, float]:
    """Responses per second in batches of REQUEST_SIZE, the best of some rounds, and the p99 of a small pass, s."""
    best = float("inf")
    model.score_types(FACT_TYPES, items[:REQUEST_SIZE])
    for _ in range(rounds):
        started = time.perf_counter()
        for start in range(0, len(items), REQUEST_SIZE):
            model.score_types(FACT_TYPES, items[start : start + REQUEST_SIZE])
        best = min(best, time.perf_counter() - started)
    passes = []
    for start in range(0, len(items) - SMALL_REQUEST, SMALL_REQUEST):
        started = time.perf_counter()
        model.score_types(FACT_TYPES, items[start : start + SMALL_REQUEST])
        passes.append(time.perf_counter() - started)
    return len(items) / best, float(np.quantile(passes, 0.99))


async def _saturate(url: str, requests: Sequence["RewardItem"], size: int) -> float:
    """Seconds for all responses in requests of that size, as many at a time as hold IN_FLIGHT large ones' responses."""
    concurrency = IN_FLIGHT * REQUEST_SIZE // size
    async with AsyncRewardClient(url, concurrency=concurrency, items_per_request=size) as client:
        await client.score(requests[:REQUEST_SIZE])
        started = time.perf_counter()
        await client.score(requests)
        return time.perf_counter() - started


async def _latencies(url: str, requests: Sequence["RewardItem"], per_second: float, seed: int) -> list[float]:
    """Seconds of each small request, which come at random times: nobody waits for the answer to another one."""
    parts = [requests[start : start + SMALL_REQUEST] for start in range(0, len(requests), SMALL_REQUEST)]
    generator = random.Random(seed)
    taken: list[float] = []

    async def ask(client: AsyncRewardClient, part: Sequence["RewardItem"]) -> None:
        started = time.perf_counter()
        await client.score(part)
        taken.append(time.perf_counter() - started)

    async with AsyncRewardClient(url, concurrency=len(parts)) as client:
        tasks = []
        for part in parts:
            tasks.append(asyncio.create_task(ask(client, part)))
            await asyncio.sleep(generator.expovariate(per_second / SMALL_REQUEST))
        await asyncio.gather(*tasks)
    return taken


def _replicas(*, gateways: bool) -> list[psutil.Process]:
    """The processes of the gateways, or those that score."""
    children = psutil.Process().children(recursive=True)
    titles = {child: "".join(child.cmdline()[:1]) for child in children}
    replicas = [child for child, title in titles.items() if "ServeReplica" in title]
    return [child for child in replicas if ("RewardGateway" in titles[child]) == gateways]


def _replica_memory_gib() -> float:
    """Proportional set size of the processes that score; the gateway and the proxy are the same for all placements."""
    return float(sum(child.memory_full_info().pss for child in _replicas(gateways=False))) / GIB


def _gateway_cpu_s(url: str, requests: Sequence["RewardItem"]) -> float:
    """Processor time of the gateways for a request of one item, one after the other."""

    def taken() -> float:
        gateways = _replicas(gateways=True)
        times = [one.cpu_times() for gateway in gateways for one in (gateway, *gateway.children(recursive=True))]
        return float(sum(time.user + time.system for time in times))

    with RewardClient(url) as client:
        before = taken()
        for request in requests:
            client.score([request])
    return (taken() - before) / len(requests)


def served(config: Config, folders: dict[str, str], load: Load, rounds: int) -> Served:
    """Deploy, ask and take down."""
    from actors.rewards import service as reward_service

    info = reward_service.deploy(config, folders)
    try:
        per_second, small_per_second = (
            len(load.requests) / min(asyncio.run(_saturate(info.url, load.requests, size)) for _ in range(rounds))
            for size in (REQUEST_SIZE, SMALL_REQUEST)
        )
        psutil.cpu_percent()
        latencies = asyncio.run(_latencies(info.url, load.requests, small_per_second / 2, 0))
        return Served(
            per_second,
            small_per_second,
            float(np.quantile(latencies, 0.99)),
            psutil.cpu_percent() / 100,
            _gateway_cpu_s(info.url, load.requests[:ALONE]),
            _replica_memory_gib(),
        )
    finally:
        reward_service.shutdown()


def measure(config: Config, count: int, rounds: int, folder: Path) -> dict[str, float]:
    """All figures."""
    import torch

    from actors.cluster.connect import connect
    from fgaif_ray.rewards.model_files import load_reward_model
    from fgaif_ray.vlm.backbone import load_backbone

    load = make_load(count)
    kinds = ("separate", "multitask")
    folders = {kind: make_models(change_config(config, [f"rewards.kind={kind}"]), folder / kind) for kind in kinds}
    torch.set_num_threads(os.cpu_count() or 1)
    model = load_reward_model(load_backbone(config.rewards.backbone, config.rewards.dtype), folders["separate"])
    bare, bare_p99 = in_process(model, load.items, rounds)
    print(f"one process: {bare:.0f} responses/s, p99 of {SMALL_REQUEST} responses {1e3 * bare_p99:.0f} ms")
    found = {}
    with connect(config):
        for name, kind, placement in (
            ("separate", "separate", "separate"),
            ("shared", "separate", "shared"),
            ("multitask", "multitask", "shared"),
        ):
            threads = 1 if placement == "separate" else os.cpu_count()  # three services share the processors
            changes = [f"rewards.kind={kind}", f"serve.placement={placement}", f"serve.threads={threads}"]
            changed = change_config(config, changes)
            found[name] = served(changed, folders[kind], load, rounds)
            print(
                f"{name}: {found[name].per_second:.0f} responses/s through HTTP, {found[name].small_per_second:.0f} in "
                f"requests of {SMALL_REQUEST}; p99 {1e3 * found[name].p99_s:.0f} ms at half of that, processors "
                f"{found[name].utilisation:.0%} busy; gateway {1e3 * found[name].gateway_s:.1f} ms of a processor a "
                f"request of one item; replicas {found[name].memory_gib:.2f} GiB"
            )
    separate, shared, multitask = found["separate"], found["shared"], found["multitask"]
    return {
        "http_over_inprocess": shared.per_second / bare,
        "added_p99_ms": 1e3 * (shared.p99_s - bare_p99),
        "added_p99_over_pass": shared.p99_s / bare_p99 - 1,
        "gateway_cpu_ms": 1e3 * shared.gateway_s,
        "shared_over_separate_memory": shared.memory_gib / separate.memory_gib,
        "shared_over_separate_time": separate.per_second / shared.per_second,
        "multitask_over_separate_time": separate.per_second / multitask.per_second,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/shapes.yaml", help="its rewards and serve sections are measured")
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    options = parser.parse_args(arguments)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(options.config, [*PAPER_SETUP, f"run.dir={folder}/run"])
        count, rounds = (96, 1) if options.quick else (960, 3)
        figures = measure(config, count, rounds, Path(folder))
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


if __name__ == "__main__":
    main()
