"""Jobs as a person submits them: to a real head with its Jobs API, from this repository, and cancelled half-way."""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fgaif_ray.storage import read_manifest

DEADLINE_S = 240.0
MAXIMUM_UPLOAD = 32 * 1024**2
"""Bytes; two thirds of it are the three checkpoints of the embedded world."""
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


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head of its own folder and ports, ended by its own process: `ray stop` would end everybody's."""
    gcs, dashboard, client, agent_http, agent_grpc, metrics = free_ports(6)
    with tempfile.TemporaryDirectory(prefix="head", dir="/tmp", ignore_cleanup_errors=True) as folder:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        # `python` of an entrypoint is the first on the head's PATH.
        path = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
        environment |= HEAD_VARIABLES | {"RAY_TMPDIR": folder, "PATH": path}
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats",
            f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agent_http}", f"--dashboard-agent-grpc-port={agent_grpc}",
            f"--metrics-export-port={metrics}", "--num-cpus=0", "--node-ip-address=127.0.0.1",
            "--dashboard-host=127.0.0.1", f"--object-store-memory={100 * 1024**2}", f"--temp-dir={folder}",
        ]  # fmt: skip
        with open(Path(folder) / "head.log", "wb") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
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


def submit(head: Head, repository: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """`ray job submit` as docs/operations.md shows it; waits for the job and follows its log."""
    command = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", head.address]
    return subprocess.run(
        [*command, "--working-dir", ".", "--", "python", *arguments],
        cwd=repository, env=head.environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip


@pytest.mark.ray
@pytest.mark.slow
def test_jobs_are_submitted_followed_and_end_with_their_own_status(head: Head, repository: Path) -> None:
    plan = ("-m", "jobs.pipeline", "--config", "configs/llava-1.5-7b.yaml", "--plan", "--cluster", "cluster.yaml")
    done = submit(head, repository, *plan)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^align +Learner +4 +4 CPU, 1 GPU +inference$", done.stdout, re.MULTILINE)
    refused = submit(head, repository, *plan, "--set", "align.gpus_per_worker=9")
    assert refused.returncode == 1
    assert "pipeline: align: no node of cluster.yaml can ever take a Learner" in refused.stdout
    assert "exit code 2" in refused.stdout + refused.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_cancelled_job_leaves_what_it_has_finished(
    head: Head, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.job_submission import JobStatus, JobSubmissionClient

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    client = JobSubmissionClient(head.address)
    run = tmp_path / "run"
    small = ["data.sample_images=8", "data.align_images=8", "data.evaluate_images=4", f"run.dir={run}"]
    overrides = " ".join(f"--set {change}" for change in small)
    job = client.submit_job(
        entrypoint=f"python -m jobs.sample --config configs/shapes.yaml {overrides}",
        submission_id="cancelled",
        runtime_env={"working_dir": str(repository)},
        metadata={"stage": "sample"},
    )
    deadline = time.monotonic() + DEADLINE_S
    # Its driver has joined the cluster, where the sampler waits for a CPU as it would for a node to come up.
    while client.get_job_info(job).driver_info is None:
        assert time.monotonic() < deadline, client.get_job_logs(job)
        assert not client.get_job_status(job).is_terminal(), client.get_job_logs(job)
        time.sleep(0.2)
    assert (run / "responses.partial").exists()
    assert client.stop_job(job)
    while not client.get_job_status(job).is_terminal():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert client.get_job_status(job) == JobStatus.STOPPED
    assert client.get_job_info(job).metadata == {"stage": "sample"}
    assert not (run / "responses").exists()
    assert "run the same command again to go on" in client.get_job_logs(job)
    assert read_manifest(str(run), "images") is not None


def test_an_upload_holds_what_nodes_need_and_nothing_else(repository: Path, tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    target = tmp_path / "package.zip"
    create_package(str(repository), target, include_gitignore=True, excludes=[])
    with zipfile.ZipFile(target) as package:
        names = package.namelist()
    assert {name.partition("/")[0] for name in names if "/" in name} == {"actors", "configs", "fgaif_ray", "jobs"}
    assert {"cluster.yaml", "jobs/pipeline.py", "configs/shapes.yaml"} <= set(names)
    assert not any(name.endswith((".pyc", ".env", ".pem", ".key")) for name in names)
    assert target.stat().st_size < MAXIMUM_UPLOAD
