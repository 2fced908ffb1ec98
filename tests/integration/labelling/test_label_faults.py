"""Labelling while the endpoint misbehaves, Ray workers are killed and the job itself is killed and run again.

What is promised: every row comes out once, labelled or rejected. The account of the run equals the server's to the
token, but for calls whose answers were on their way when their worker was killed or gave up waiting; the account has
those too, as calls without a known end. A call whose answer has arrived is never made again.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import pytest
import yaml
from PIL import Image
from support.fake_openai import FakeOpenAI, Misbehaving, Reply, Request
from support.label_helpers import KEY_VARIABLE, answer_by_rule, check_account, make_config, write_responses
from unit.test_images import claimed_png, encoded

from fgaif_ray import storage
from fgaif_ray.calls.chat_caller import on_deck
from fgaif_ray.config import Config
from fgaif_ray.segments import has_words, split_segments

WORKERS, CONCURRENCY = 2, 4
EXTRACTION, DESK, VERIFIER, AGENT = "FactExtraction", "CallCoordinatorActor", "Verifier", "Agent"
DELAY_S = 0.05
"""Of every answer: some calls are under way whenever something is killed."""
TIMEOUT_S = 5.0
LONGEST_S = 3000.0
GONE_S = 300.0
POISON = (b"", b"no image", claimed_png(10_000, 10_000), encoded(Image.effect_noise((64, 64), 50))[:200])


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
            found = psutil.Process(self._process.pid).children(recursive=True)
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


class Killer:
    """Kills a Ray worker of the job again and again, mostly one that extracts."""

    CHANCES = {EXTRACTION: 6, DESK: 1, VERIFIER: 1}

    def __init__(self, job: Job, every_s: float, seed: int) -> None:
        self.killed: Counter[str] = Counter()
        self._job, self._every_s, self._random = job, every_s, random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            (kind,) = self._random.choices(list(self.CHANCES), list(self.CHANCES.values()))
            if workers := self._job.workers(kind):
                os.kill(self._random.choice(workers).pid, signal.SIGKILL)
                self.killed[kind] += 1


StartJob = Callable[[Config], Job]


@pytest.fixture
def start_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartJob]:
    """Starts jobs; what is left of them at the end of the test is killed."""
    monkeypatch.setenv(KEY_VARIABLE, "key")
    ray_folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: Unix sockets lie below it
    jobs: list[Job] = []

    def start(config: Config) -> Job:
        jobs.append(Job(config, tmp_path, ray_folder))
        return jobs[-1]

    yield start
    for job in jobs:
        if job.is_running():
            job.kill()
    shutil.rmtree(ray_folder, ignore_errors=True)


@pytest.fixture
def endpoint() -> Iterator[FakeOpenAI]:
    def answer(number: int, body: Request) -> Reply:
        reply = answer_by_rule(number, body)
        reply.delay_s = DELAY_S
        return reply

    with FakeOpenAI(Misbehaving(answer, overloaded=0.05, failing=0.02, malformed=0.02, hanging=0.01)) as server:
        yield server


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


@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.slow
def test_a_killed_worker_and_a_killed_job_lose_nothing_and_pay_once(
    tmp_path: Path, endpoint: FakeOpenAI, start_job: StartJob
) -> None:
    config = configure(tmp_path, endpoint, images=30)
    responses = write_responses(config, per_image=2, poison=POISON)
    questions = count_questions(responses)
    first = start_job(config)
    wait_for_answers(endpoint, first, questions // 3)
    os.kill(first.workers(EXTRACTION)[0].pid, signal.SIGKILL)
    wait_for_answers(endpoint, first, questions // 2)
    first.kill()
    second = start_job(config)
    assert second.wait() == 0, second.log.read_text()[-2000:]
    check_rows(config, responses, without_image=1 + len(POISON))
    check_account(config.run.dir, endpoint, may_be_lost=on_deck(CONCURRENCY) * (1 + WORKERS))


@pytest.mark.proof
@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.timeout(2 * LONGEST_S)
def test_two_thousand_rows_survive_everything_at_once(
    tmp_path: Path, endpoint: FakeOpenAI, start_job: StartJob
) -> None:
    config = configure(tmp_path, endpoint, images=200)
    responses = write_responses(config, per_image=10)
    questions = count_questions(responses)
    killed: Counter[str] = Counter()
    for attempt in range(4):
        job = start_job(config)
        with Killer(job, every_s=5, seed=attempt) as killer:
            if attempt < 3:
                wait_for_answers(endpoint, job, questions * (attempt + 1) // 4)
                job.kill()
            else:
                assert job.wait() == 0, job.log.read_text()[-2000:]
        killed += killer.killed
    print(f"{len(responses)} rows; killed: {dict(killed)}, and the job three times")
    check_rows(config, responses, without_image=1)
    check_account(config.run.dir, endpoint, may_be_lost=on_deck(CONCURRENCY) * (killed[EXTRACTION] + 3 * WORKERS))
