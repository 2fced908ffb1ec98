"""The call coordinator of a run as a Ray actor."""

import asyncio
import uuid
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fgaif_ray.calls.coordinator import CallCoordinator, CallEnd, KeyEnd, News
from fgaif_ray.calls.tokens import CallSize
from fgaif_ray.config import CallsConfig

CONCURRENCY: Final = 1000
"""Requests that the coordinator holds open: each worker listens and waits for permits."""
RESTARTS: Final = -1
"""Any number of restarts, since its start reads its state from files."""


class CallCoordinatorActor:
    """``CallCoordinator`` on the cluster; after a restart it reads its state from the run's files again."""

    def __init__(self, config: CallsConfig, run: str) -> None:
        with warnings.catch_warnings():  # Ray's own use of a property that it has deprecated
            warnings.simplefilter("ignore", DeprecationWarning)
            again = ray.get_runtime_context().was_current_actor_reconstructed
        self._coordinator = CallCoordinator(config, run, again=bool(again))

    async def claim(self, worker: str, keys: Sequence[str]) -> list[str]:
        return await self._coordinator.claim(worker, keys)

    async def resume(self, worker: str, keys: Sequence[str]) -> None:
        await self._coordinator.resume(worker, keys)

    async def acquire(self, worker: str, sizes: Sequence[CallSize]) -> list[int] | str:
        return await self._coordinator.acquire(worker, sizes)

    async def complete(self, worker: str, ends: Sequence[CallEnd | KeyEnd]) -> None:
        await self._coordinator.complete(worker, ends)

    async def pause(self, seconds: float) -> None:
        await self._coordinator.pause(seconds)

    async def stop(self, reason: str) -> None:
        await self._coordinator.stop(reason)

    async def listen(self, worker: str, news: int) -> News:
        return await self._coordinator.listen(worker, news)


@dataclass(frozen=True, slots=True)
class CoordinatorAddress:
    """Address of the coordinator: plain data, for the plan from which Ray restarts workers."""

    name: str
    namespace: str


def start_coordinator(config: CallsConfig, run: str) -> "tuple[CoordinatorAddress, ActorHandle[Any]]":
    """Start the coordinator beside the driver; it ends with the last use of the handle."""
    context = ray.get_runtime_context()
    address = CoordinatorAddress(f"call-coordinator-{uuid.uuid4().hex}", context.namespace)
    node = NodeAffinitySchedulingStrategy(context.get_node_id(), soft=True)
    options: dict[str, Any] = {
        "name": address.name,
        "namespace": address.namespace,
        "num_cpus": 0,
        "max_concurrency": CONCURRENCY,
        "max_restarts": RESTARTS,
        "max_task_retries": RESTARTS,
        "scheduling_strategy": node,
    }
    coordinator: Any = ray.remote(CallCoordinatorActor).options(**options)
    return address, coordinator.remote(config, run)


class RemoteCoordinator:
    """The coordinator's interface for a worker (``fgaif_ray.calls.client.Coordinator``)."""

    def __init__(self, address: CoordinatorAddress) -> None:
        self._actor: Any = ray.get_actor(address.name, address.namespace)

    async def claim(self, worker: str, keys: Sequence[str]) -> list[str]:
        answers: list[str] = await _result(self._actor.claim.remote(worker, keys))
        return answers

    async def resume(self, worker: str, keys: Sequence[str]) -> None:
        await _result(self._actor.resume.remote(worker, keys))

    async def acquire(self, worker: str, sizes: Sequence[CallSize]) -> list[int] | str:
        permits: list[int] | str = await _result(self._actor.acquire.remote(worker, sizes))
        return permits

    async def complete(self, worker: str, ends: Sequence[CallEnd | KeyEnd]) -> None:
        await _result(self._actor.complete.remote(worker, ends))

    async def pause(self, seconds: float) -> None:
        await _result(self._actor.pause.remote(seconds))

    async def stop(self, reason: str) -> None:
        await _result(self._actor.stop.remote(reason))

    async def listen(self, worker: str, news: int) -> News:
        heard: News = await _result(self._actor.listen.remote(worker, news))
        return heard


async def _result(reference: Any) -> Any:
    """Await the value of an object reference, in any event loop."""
    return await asyncio.wrap_future(reference.future())
