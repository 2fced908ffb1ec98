"""A fourth fact type in one file and one line of configuration, through the whole loop: label, train, serve, align,
evaluate, report, audit.

The models are the shipped ones but for the extractor, which knows three types: an endpoint plays it by rule.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.counting import write_counting
from support.fake_openai import FakeOpenAI, Reply, Request
from support.label_helpers import facts_of
from support.small_run import SMALL

from fgaif_ray import storage
from fgaif_ray.config import Config, load_config
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rl.run_log import read_lines
from jobs.audit import draw_audit

pytestmark = [pytest.mark.ray, pytest.mark.vllm]
TYPES = (*FACT_TYPES, "counting")
TINY = (
    "data.sample_images=16",
    "data.align_images=4",
    "data.evaluate_images=2",
    "label.batch_size=16",
    "label.control_items.per_block=0",
    "rewards.batch_size=8",
    "align.steps=1",
    "align.rollout_batch_size=8",
    "evaluate.max_tokens=32",
    "report.examples=1",
    "report.extremes=0",
)


def answer(_number: int, body: Request) -> Reply:
    """The facts of the sub-sentence that a request of ``extract-v1`` is about; whatever is there is counted."""
    response, asked = (json.loads(line) for line in re.findall(r'^(?:"|\[").*$', body["messages"][1]["content"], re.M))
    (segment,) = asked
    facts = facts_of(response[: response.index(segment) + len(segment)], segment)
    return Reply.completion(facts | {"counting": facts["existence"]})


@pytest.fixture(scope="module")
def run(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished run."""
    folder = tmp_path_factory.mktemp("fourth")
    with FakeOpenAI(answer) as endpoint:
        changes = [
            f"run.dir={folder / 'run'}",
            f"run.fact_types=[{', '.join(FACT_TYPES)}, {write_counting(folder)}]",
            f"label.extractor.base_url={endpoint.url}",
            "label.extractor.serve_model=null",
            "label.extractor.prompt=extract-v1",
            *SMALL,
            *TINY,
        ]
        command = [sys.executable, "-m", "jobs.pipeline", "--config", "configs/shapes.yaml"]
        for change in changes:
            command += ["--set", change]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return load_config(repository / "configs" / "shapes.yaml", changes)


def read(run: Config, *names: str) -> Any:
    return storage.read_json(storage.join(run.run.dir, *names))


def test_sub_sentences_are_labelled_for_it(run: Config) -> None:
    part = storage.list_parts(storage.join(run.run.dir, "feedback"))[0]
    with storage.open_binary(part) as file:
        labels = pq.read_schema(file).field("segments").type.value_type.field("labels").type
    assert [field.name for field in labels] == list(TYPES)
    figures = read(run, "feedback", "metrics.json")
    assert figures["labels"]["counting"] == figures["labels"]["existence"]  # the endpoint gives both the same facts
    assert figures["facts"]["counting"] > 0


def test_a_reward_model_is_trained_for_it(run: Config) -> None:
    assert read(run, "rewards", "counting", "metrics.json")["fact_type"] == "counting"


def test_the_policy_is_rewarded_for_it(run: Config) -> None:
    (step,) = read_lines(storage.join(run.run.dir, "policy", "metrics.jsonl"))
    assert step["reward/total"] is not None
    assert {name for name in step if name.startswith("hallucination/")} == {f"hallucination/{name}" for name in TYPES}


def test_the_report_shows_it(run: Config) -> None:
    html = storage.read_bytes(storage.join(run.run.dir, "report.html")).decode()
    assert "--type-counting: #0f766e;" in html
    assert '<i class="dot" style="background:var(--type-counting)"></i>counting' in html


def test_the_summary_has_it(run: Config) -> None:
    assert set(read(run, "summary.json")["rewards"]) == set(TYPES)


def test_people_are_asked_about_it(run: Config) -> None:
    draw_audit(run, 4)
    folder = storage.join(run.run.dir, "audit")
    page = storage.read_bytes(storage.join(folder, "audit.html")).decode()
    assert "how many there are" in page
    assert set(storage.read_json(storage.join(folder, "sample.json"))["strata"]) == set(TYPES)
