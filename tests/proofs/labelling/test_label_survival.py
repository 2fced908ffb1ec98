"""Two thousand rows labelled while workers and the job itself are killed again and again."""

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from support.fake_openai import FakeOpenAI
from support.label_faults import (
    CONCURRENCY,
    DESK,
    EXTRACTION,
    LONGEST_S,
    VERIFIER,
    WORKERS,
    Job,
    StartJob,
    check_rows,
    configure,
    count_questions,
    label_jobs,
    misbehaving_endpoint,
    wait_for_answers,
)
from support.label_helpers import KEY_VARIABLE, check_account, write_responses

from fgaif_ray.calls.chat_caller import on_deck


@pytest.fixture
def endpoint() -> Iterator[FakeOpenAI]:
    with misbehaving_endpoint() as server:
        yield server


@pytest.fixture
def start_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartJob]:
    monkeypatch.setenv(KEY_VARIABLE, "key")
    with label_jobs(tmp_path) as start:
        yield start


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
