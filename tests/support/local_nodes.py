"""Clusters of several nodes on this machine, jobs that run on them as processes of their own, and lost nodes."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from unittest.mock import patch

import yaml

from actors.cluster.loopback import on_loopback
from fgaif_ray.config import Config

LONGEST_S = 1500.0
POLL_S = 0.05
START_S = 90.0
"""For a node to come up; Ray's own 30 s can be too few on a busy machine."""
STARTS = 4
"""Tries: a raylet ends itself where its agents take longer than 15 s, which cannot be changed."""
VARIABLES = {
    # A killed raylet refuses connections, and is found out in about 5 s; one that is only slow is left alone.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_health_check_timeout_ms": "60000",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
}
OBJECT_STORE = 100 * 1024**2


class LocalNodes:
    """A head without room for work, and nodes that are added and lost.

    Example: ``with LocalNodes() as nodes: node = nodes.add("data", 2)``
    """

    def __init__(self, **variables: str) -> None:
        """Prepare.

        Args:
            variables: of the environment of all nodes, beside ``VARIABLES``.
        """
        self._variables = variables
        self.roles: dict[str, str] = {}
        """The label of every node that was added, by the node's id."""

    def __enter__(self) -> Self:
        from ray.cluster_utils import Cluster

        self._folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: Unix sockets lie below it
        # Its own folder also for the address that Ray notes, which others on this machine would connect to.
        variables = VARIABLES | self._variables | {"RAY_TMPDIR": self._folder}
        self._before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        (Path(self._folder) / "ray").mkdir()
        # Where another Ray of this process is on loopback its address is that of these nodes, too, but not the one that
        # the processes of a test would look for them at.
        self._loopback = on_loopback()
        self._loopback.__enter__()
        self._cluster = Cluster()
        self._start(num_cpus=0, include_dashboard=False, temp_dir=self._folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cluster.shutdown()
        self._loopback.__exit__(None, None, None)
        for name, value in self._before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def address(self) -> str:
        address: str = self._cluster.address
        return address

    def add(self, role: str, cpus: int, gpus: int = 0, **resources: float) -> Any:
        """Start a node that carries the label that the node types of `cluster.yaml` carry; its GPUs are logical."""
        node = self._start(num_cpus=cpus, num_gpus=gpus, labels={"role": role}, resources=resources)
        self.roles[node.node_id] = role
        return node

    def lose(self, node: Any) -> None:
        """Kill the raylet; its workers end when they see that it is gone."""
        node.kill_raylet()

    def notice(self, node: Any, seconds: float) -> None:
        """Say that a node will be taken away, as a cloud does of a spot machine."""
        from ray._raylet import GcsClient  # type: ignore[attr-defined]  # of compiled code
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]

        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline = int((time.time() + seconds) * 1000)
        accepted, why = GcsClient(address=self.address).drain_node(node.node_id, reason, "spot", deadline)
        assert accepted, why

    def _start(self, **arguments: Any) -> Any:
        from ray._private import services

        with patch.object(services, "get_node", _patient(services.get_node)):
            for _ in range(STARTS - 1):
                try:
                    return self._cluster.add_node(object_store_memory=OBJECT_STORE, **arguments)
                except Exception as error:
                    if "timed out during startup" not in str(error):
                        raise
            return self._cluster.add_node(object_store_memory=OBJECT_STORE, **arguments)


def _patient(get_node: Callable[[str, str], Any]) -> Callable[[str, str], Any]:
    """The function that finds out that a node is up, with more time."""

    def wait(address: str, node_id: str) -> Any:
        deadline = time.monotonic() + START_S
        while True:
            try:
                return get_node(address, node_id)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)

    return wait


class NodeJob:
    """`python -m jobs.NAME` on a cluster; what is left of it is killed when the block ends."""

    def __init__(self, name: str, config: Config, address: str | None, folder: Path, **variables: str) -> None:
        tree = config.model_dump(mode="json")
        tree["ray"]["address"] = address
        (folder / "config.yaml").write_text(yaml.safe_dump(tree))
        self._log = folder / f"{name}.log"
        command = [sys.executable, "-m", f"jobs.{name}", "--config", str(folder / "config.yaml")]
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | variables, start_new_session=True
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    @property
    def output(self) -> str:
        return self._log.read_text()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds while the job runs."""
        deadline = time.monotonic() + LONGEST_S
        while not condition():
            assert self.process.poll() is None, self.output[-4000:]
            assert time.monotonic() < deadline, self.output[-4000:]
            time.sleep(POLL_S)

    def finish(self) -> str:
        """Wait for a good end; returns what the job said."""
        status = self.process.wait(LONGEST_S)
        assert status == 0, self.output[-4000:]
        return self.output
