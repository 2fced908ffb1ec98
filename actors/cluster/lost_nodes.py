"""Nodes that a job loses: messages about them, and recognition of failures that they caused."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Self

import ray
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayError, WorkerCrashedError

from fgaif_ray.progress import say

EVERY_S: Final = 1.0
LOSSES: Final = (NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError)
"""Errors of a call whose process, or the only copy of whose result, is gone."""
ROLE: Final = "role"
"""Label that the node types of `cluster.yaml` carry."""
WANTED: Final = (1, 4)
"""``NodeDeathInfo.Reason`` of nodes that went on purpose: stopped, or returned because they were idle."""


class NodeWatch:
    """A watch that logs in one line that a node was lost, or that one is about to be taken away.

    Example: ``with NodeWatch(): ...`` while connected to Ray.
    """

    def __init__(self, tell: Callable[[str], None] = say) -> None:
        self._tell = tell
        self._alive: set[str] = set()
        self._announced: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="node watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()  # asked after Ray has been left, it would connect again

    def look(self, nodes: list[dict[str, Any]], deadlines: dict[str, int], now: float) -> None:
        """Compare with the last state.

        Args:
            nodes: as ``ray.nodes()`` gives them.
            deadlines: when nodes that are drained will be taken away, in milliseconds of UNIX time; 0 where nobody
                takes them away.
            now: UNIX time in seconds.
        """
        for node in nodes:
            identity = node["NodeID"]
            if node["Alive"]:
                self._alive.add(identity)
                deadline = deadlines.get(identity, 0)
                if deadline and identity not in self._announced:
                    self._announced.add(identity)
                    self._tell(f"{_name(node)} will be taken away in {max(0.0, deadline / 1000 - now):.0f} s.")
            elif identity in self._alive:
                self._alive.remove(identity)
                if node["DeathReason"] not in WANTED:
                    self._tell(f"{_name(node)} was lost: what it was doing is done again on other nodes.")

    def _run(self) -> None:
        while not self._stop.is_set():
            # If the head does not answer, the job itself will notice.
            with contextlib.suppress(RayError, RuntimeError):
                self.look(ray.nodes(), _deadlines(), time.time())
            self._stop.wait(EVERY_S)


def _deadlines() -> dict[str, int]:
    from ray._private.state import state  # Ray Train uses this too; there is no public way

    found: dict[str, int] = state.get_draining_nodes()
    return found


def _name(node: dict[str, Any]) -> str:
    role = node.get("Labels", {}).get(ROLE)
    return f"Node {node['NodeManagerAddress']} ({f'{role}, ' if role else ''}{node['NodeID'][:8]})"


def is_loss(error: BaseException) -> bool:
    """Tell whether an exception of Ray, or one that it has wrapped, says that a process or its node is gone."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, LOSSES):
            return True
        failures = getattr(one, "worker_failures", {})
        waiting += [getattr(one, "cause", None), getattr(one, "health_check_failure", None)]
        waiting += [one.__cause__, one.__context__, *failures.values()]
    return False
