"""A head whose autoscaler starts the node types of a cluster file as raylets on this machine."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import yaml

from support.placed_actors import connect_state

HEAD_ID = "f" * 51 + "00000"
# As Ray's provider of local nodes calls the head, whatever the file calls it; a type that it does not know stops the
# autoscaler in every round (a KeyError in monitor.log) and no node ever starts.
HEAD_TYPE = "ray.head.default"
IDLE_MINUTES = 0.1
LONGEST_S = 1500.0
VARIABLES = {
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    # The nodes claim many CPUs that are not there: a process for each would be started at once.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_num_workers_soft_limit": "1",
    "RAY_agent_register_timeout_ms": "180000",
    "RAY_health_check_timeout_ms": "60000",
}
OBJECT_STORE = 100_000_000


class LocalAutoscaler:
    """Example: ``with LocalAutoscaler(Path("cluster.yaml")) as cluster: cluster.roles()``"""

    def __init__(self, cluster_file: Path) -> None:
        self._tree = yaml.safe_load(cluster_file.read_text())

    def __enter__(self) -> Self:
        self._folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
        host = _host()
        self.address = f"{host}:{_free_port(host)}"
        config = Path(self._folder) / "autoscaling.json"
        config.write_text(json.dumps(self._config()))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= VARIABLES | {"RAY_TMPDIR": self._folder}
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=0",
            f"--port={self.address.rpartition(':')[2]}", "--include-dashboard=false", f"--temp-dir={self._folder}",
            f"--object-store-memory={OBJECT_STORE}", f"--autoscaling-config={config}",
        ]  # fmt: skip
        self.log = Path(self._folder) / "head.log"
        with open(self.log, "wb") as log:
            self._head = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        self.wait_for(lambda: "Ray runtime started" in self.log.read_text())
        self._state = connect_state(self.address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The nodes are children of the autoscaler, whose end they would outlive.
        processes = psutil.Process(self._head.pid).children(recursive=True)
        self._head.terminate()
        self._head.wait(60)
        _, left = psutil.wait_procs(processes, 10)
        for process in left:
            process.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def roles(self) -> list[str]:
        """The label `role` of every node that is up, the head apart."""
        nodes = [node for node in self._state.node_table() if node["Alive"] and "role" in node["Labels"]]
        return sorted(node["Labels"]["role"] for node in nodes)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds."""
        deadline = time.monotonic() + LONGEST_S
        while not condition():
            assert self._head.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.1)

    def _config(self) -> dict[str, Any]:
        """The cluster file with its node types, limits and labels as they are, and a provider of local nodes."""
        types = {}
        for name, node_type in self._tree["available_node_types"].items():
            kept = {key: node_type[key] for key in ("min_workers", "max_workers", "labels") if key in node_type}
            resources = dict(node_type["resources"])
            if name == self._tree["head_node_type"]:
                name = HEAD_TYPE
                kept["max_workers"] = 0
            else:
                resources["object_store_memory"] = OBJECT_STORE
            # Only how long a node may be idle is another: minutes in the file.
            types[name] = kept | {"resources": resources, "node_config": {}}
        provider = {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
            "gcs_address": self.address,
        }
        lists = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
        return {
            **{key: self._tree[key] for key in ("cluster_name", "max_workers", "upscaling_speed")},
            "head_node_type": HEAD_TYPE,
            "provider": provider,
            "available_node_types": types,
            "idle_timeout_minutes": IDLE_MINUTES,
            "auth": {},
            "docker": {},
            "head_node": {},
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            **{f"{name}_commands": [] for name in lists},
            **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        }


def _host() -> str:
    import ray

    host: str = ray.util.get_node_ip_address()
    return host


def _free_port(host: str) -> int:
    """Below those that Ray gives its workers."""
    for port in range(6400 + os.getpid() % 500, 7000):
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")
