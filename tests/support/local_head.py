"""A real head with its dashboard, as `ray start --head` of a person makes it."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DEADLINE_S = 240.0
HEAD_VARIABLES = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A busy machine takes longer than Ray expects.
    "RAY_JOB_STOP_WAIT_TIME_S": "60",
    "RAY_agent_register_timeout_ms": "180000",
}


def free_ports(count: int) -> list[int]:
    """Ports below those that Ray gives its workers."""
    found: list[int] = []
    for port in range(7100 + os.getpid() % 1000, 9900):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")


@dataclass(frozen=True)
class Head:
    """A head that was started from the command line."""

    address: str
    environment: dict[str, str]


@contextmanager
def started_head(repository: Path, num_cpus: int, **variables: str) -> Iterator[Head]:
    """A head of its own folder and ports, ended by its own process: `ray stop` would end everybody's."""
    gcs, dashboard, client, agent_http, agent_grpc, metrics = free_ports(6)
    with tempfile.TemporaryDirectory(prefix="head", dir="/tmp", ignore_cleanup_errors=True) as folder:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        # `python` of an entrypoint is the first on the head's PATH.
        path = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
        environment |= HEAD_VARIABLES | {"RAY_TMPDIR": folder, "PATH": path} | variables
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats",
            f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agent_http}", f"--dashboard-agent-grpc-port={agent_grpc}",
            f"--metrics-export-port={metrics}", f"--num-cpus={num_cpus}", "--node-ip-address=127.0.0.1",
            "--dashboard-host=127.0.0.1", f"--object-store-memory={100 * 1024**2}", f"--temp-dir={folder}",
        ]  # fmt: skip
        with open(Path(folder) / "head.log", "wb") as log:
            process = subprocess.Popen(
                command,
                cwd=repository,
                env=environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            address = f"http://127.0.0.1:{dashboard}"
            wait_for_jobs_api(process, address, Path(folder) / "head.log")
            yield Head(address, environment)
        finally:
            process.terminate()
            process.wait(60)


def wait_for_jobs_api(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    import urllib.error
    import urllib.request

    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{address}/api/jobs/", timeout=10):
                if "Ray runtime started" in log.read_text():  # the dashboard answers before the node is there
                    return
        except OSError:
            pass
        time.sleep(0.3)
    raise TimeoutError(log.read_text())
