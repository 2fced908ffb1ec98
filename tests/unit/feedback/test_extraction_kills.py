"""Extraction whose process is killed again and again: a call whose answer has arrived is never made again."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from support.fake_openai import FakeOpenAI, Misbehaving, Reply, Request
from support.label_helpers import check_account

from fgaif_ray.calls.chat_caller import on_deck

QUESTIONS = 200
CONCURRENCY = 8
KILLS = 4
DELAY_S = 0.03
WORK = """
import asyncio, sys
from fgaif_ray.config import ExtractorConfig
from fgaif_ray.calls.client import CallClient
from fgaif_ray.calls.coordinator import CallCoordinator
from fgaif_ray.fact_types import DEFAULT
from fgaif_ray.feedback.extractor import FactExtractor
from fgaif_ray.feedback.prompts import load_prompt

async def work(url, run, questions, concurrency):
    config = ExtractorConfig(base_url=url, model="m", concurrency=concurrency, max_retries=8)
    client = CallClient(CallCoordinator(config, run), config, run)
    extractor = FactExtractor(config, load_prompt("extract-short-v2", DEFAULT), url, None, client)
    texts = [f"Dog number {number}." for number in range(questions)]
    await asyncio.gather(*(extractor.extract(text, [text]) for text in texts), return_exceptions=True)
    await extractor.close()
    await client.close()

asyncio.run(work(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
"""


def answer(number: int, body: Request) -> Reply:
    """At a number of completion tokens that no other call has."""
    facts = {"existence": ["There is a dog."], "attribute": [], "relation": []}
    return Reply.completion(facts, usage=(10, number + 1), delay_s=DELAY_S)


def test_what_has_arrived_is_never_asked_again_however_often_the_process_is_killed(tmp_path: Path) -> None:
    reply = Misbehaving(answer, overloaded=0.05, failing=0.02, malformed=0.02)
    with FakeOpenAI(reply) as endpoint:
        command = [sys.executable, "-c", WORK, endpoint.url, str(tmp_path), str(QUESTIONS), str(CONCURRENCY)]
        for kill in range(1, KILLS + 1):
            process = subprocess.Popen(command)
            while len(endpoint.billed) < QUESTIONS * kill / (KILLS + 1) and process.poll() is None:
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        subprocess.run(command, check=True)
        check_account(str(tmp_path), endpoint, may_be_lost=KILLS * on_deck(CONCURRENCY))
        asked = {body["messages"][0]["content"] for body in endpoint.requests}
    assert len(asked) == QUESTIONS
