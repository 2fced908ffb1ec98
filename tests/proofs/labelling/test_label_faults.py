"""Labelling while the endpoint misbehaves, Ray workers are killed and the job itself is killed and run again.

What is promised: every row comes out once, labelled or rejected. The account of the run equals the server's to the
token, but for calls whose answers were on their way when their worker was killed or gave up waiting; the account has
those too, as calls without a known end. A call whose answer has arrived is never made again.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from support.fake_openai import FakeOpenAI
from support.image_files import claimed_png, encoded
from support.label_faults import (
    CONCURRENCY,
    EXTRACTION,
    WORKERS,
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

POISON = (b"", b"no image", claimed_png(10_000, 10_000), encoded(Image.effect_noise((64, 64), 50))[:200])


@pytest.fixture
def endpoint() -> Iterator[FakeOpenAI]:
    with misbehaving_endpoint() as server:
        yield server


@pytest.fixture
def start_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartJob]:
    monkeypatch.setenv(KEY_VARIABLE, "key")
    with label_jobs(tmp_path) as start:
        yield start


@pytest.mark.proof
@pytest.mark.ray
@pytest.mark.vllm
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
