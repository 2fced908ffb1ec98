"""Jobs as a person submits them: to a real head with its Jobs API, from this repository, and cancelled half-way."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.local_head import DEADLINE_S, Head, started_head

from fgaif_ray.storage import read_manifest


@pytest.fixture(scope="module")
def head(repository: Path) -> Iterator[Head]:
    with started_head(repository, num_cpus=0) as started:
        yield started


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
    plan = ("-m", "jobs.plan", "--config", "configs/llava-1.5-7b.yaml", "--cluster", "cluster.yaml")
    done = submit(head, repository, *plan)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^align +Learner +4 +4 CPU, 1 GPU +inference$", done.stdout, re.MULTILINE)
    refused = submit(head, repository, *plan, "--set", "align.gpus_per_worker=9")
    assert refused.returncode == 1
    assert "plan: align: no node of cluster.yaml can ever take a Learner" in refused.stdout
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
    assert "runs the code of anybody who reaches its ports" in client.get_job_logs(job)  # this head has no token
    assert read_manifest(str(run), "images") is not None
