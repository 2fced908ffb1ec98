"""Where the actors of a cluster are."""

import threading
from collections import defaultdict
from types import TracebackType
from typing import Any, Self

INTERVAL_S = 0.3


class PlacedActors:
    """Notes on which nodes actors live that start while the block runs, without being a job of the cluster.

    Example: ``with PlacedActors(address) as placed: ...`` and then ``placed.nodes["RolloutWorker"]``
    """

    def __init__(self, address: str) -> None:
        self._state = connect_state(address)
        self._before = set(self._state.actor_table(None))  # the tables keep actors that have ended
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.nodes: dict[str, dict[str, str]] = defaultdict(dict)
        """Node ids by id of the actor, by its class."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def of(self, name: str) -> list[str]:
        """The nodes of all actors that have a word in the name of their class, one entry for each."""
        return [node for kind, actors in self.nodes.items() if name in kind for node in actors.values()]

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL_S):
            for identity, actor in self._state.actor_table(None).items():
                if identity not in self._before and (node := actor["Address"]["NodeID"]):
                    self.nodes[actor["ActorClassName"]][identity] = node


def connect_state(address: str) -> Any:
    """Ray's tables of a cluster, for a process that does not join it."""
    from ray._private.state import GlobalState
    from ray._raylet import GcsClientOptions  # type: ignore[attr-defined]  # of compiled code

    state = GlobalState()
    state._initialize_global_state(
        GcsClientOptions.create(address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
    )
    return state
