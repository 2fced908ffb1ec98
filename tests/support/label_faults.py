"""The labelling job as a process of its own, an endpoint that misbehaves, and what must hold when both are killed."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.segments import has_words, split_segments
from support.fake_openai import FakeOpenAI, Misbehaving, Reply, Request
from support.label_helpers import answer_by_rule, make_config

WORKERS, CONCURRENCY = 2, 4
EXTRACTION, DESK, VERIFIER, AGENT = "FactExtraction", "CallCoordinatorActor", "Verifier", "Agent"
DELAY_S = 0.05
"""Of every answer: some calls are under way whenever something is killed."""
TIMEOUT_S = 5.0
LONGEST_S = 3000.0
GONE_S = 300.0


class Job:
    """`python -m jobs.label` as a process of its own, and the Ray it starts."""

    def __init__(self, config: Config, folder: Path, ray_folder: str) -> None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        command = [sys.executable, "-m", "jobs.label", "--config", str(folder / "config.yaml")]
        self.log = folder / "job.log"
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | {"RAY_TMPDIR": ray_folder}, start_new_session=True
            )
        self._seen: dict[int, psutil.Process] = {}

    def workers(self, kind: str) -> list[psutil.Process]:
        """The Ray workers of this job that run actors of a kind."""
        titles = {process: _title(process) for process in self._descendants()}
        return [process for process, title in titles.items() if title.startswith("ray::") and kind in title]

    def _descendants(self) -> list[psutil.Process]:
        try:
            found: list[psutil.Process] = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self._seen |= {process.pid: process for process in found}
        return found

    def wait(self) -> int:
        try:
            return self._process.wait(LONGEST_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def is_running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL to the job; returns when nothing of it is left that works."""
        self._descendants()
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        agents = [process for process in self._seen.values() if AGENT in _title(process)]
        for agent in agents:  # idle ones, which take minutes to see that their node is gone
            with contextlib.suppress(psutil.NoSuchProcess):
                agent.kill()
        _, left = psutil.wait_procs(list(self._seen.values()), GONE_S)
        assert not left, f"Ray outlived its job: {left}"


def _title(process: psutil.Process) -> str:
    """The command line, which Ray's workers set to what they do; empty where the process is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


StartJob = Callable[[Config], Job]


@contextlib.contextmanager
def label_jobs(folder: Path) -> Iterator[StartJob]:
    """Starts jobs; what is left of them at the end of the block is killed."""
    ray_folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: Unix sockets lie below it
    jobs: list[Job] = []

    def start(config: Config) -> Job:
        jobs.append(Job(config, folder, ray_folder))
        return jobs[-1]

    try:
        yield start
    finally:
        for job in jobs:
            if job.is_running():
                job.kill()
        shutil.rmtree(ray_folder, ignore_errors=True)


def misbehaving_endpoint() -> FakeOpenAI:
    """An endpoint that answers by rule, late, and now and then fails in every way there is."""

    def answer(number: int, body: Request) -> Reply:
        reply = answer_by_rule(number, body)
        reply.delay_s = DELAY_S
        return reply

    return FakeOpenAI(Misbehaving(answer, overloaded=0.05, failing=0.02, malformed=0.02, hanging=0.01))


def configure(folder: Path, endpoint: FakeOpenAI, images: int) -> Config:
    config = make_config(
        folder, endpoint.url, images, workers=WORKERS, concurrency=CONCURRENCY, timeout_s=TIMEOUT_S, max_retries=8
    )
    return config.model_copy(update={"ray": config.ray.model_copy(update={"num_cpus": 4, "object_store_gib": 0.3})})


def count_questions(responses: list[dict[str, Any]]) -> int:
    texts = {row["response"] for row in responses}
    return sum(has_words(text[span.start : span.end]) for text in texts for span in split_segments(text))


def wait_for_answers(endpoint: FakeOpenAI, job: Job, count: int) -> None:
    """Wait until the server has answered so many calls."""
    deadline = time.monotonic() + LONGEST_S
    while len(endpoint.billed) < count:
        assert job.is_running(), job.log.read_text()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def check_rows(config: Config, responses: list[dict[str, Any]], without_image: int) -> None:
    stages = ("feedback", "feedback_rejected")
    rows = [row for stage in stages for row in storage.read_rows(storage.join(config.run.dir, stage))]
    assert sorted(row["sample_id"] for row in rows) == sorted(row["sample_id"] for row in responses)
    reasons = Counter(row["reason"].partition(":")[0] for row in rows if "reason" in row)
    assert reasons["image"] == without_image
    assert reasons.keys() <= {"image", "malformed", "timeout"}
