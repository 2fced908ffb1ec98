"""The whole loop over three families at once: a Qwen3-VL is aligned, an InternVL checks it, SmolVLMs reward it.

A fourth fact type, one file and one line of configuration, goes along, and every stage asks for GPUs, which are
numbers here (`ray.logical_gpus`). The checkpoints are tiny and random, so what they say means nothing: it is what is
done with it that is looked at. One image cannot be read.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from support.counting import write_counting
from support.fake_openai import FakeOpenAI, Reply, Request
from support.families import build, photo
from support.paths import ROOT

from fgaif_ray import storage
from fgaif_ray.config import load_config
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rewards.encoding import ScoringItem
from fgaif_ray.rewards.model_files import load_reward_model
from fgaif_ray.rl.run_log import read_lines
from fgaif_ray.storage import stages
from fgaif_ray.vlm.backbone import load_backbone
from fgaif_ray.vlm.front_end import load_front_end
from jobs.audit import draw_audit

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow]
POLICY, VERIFIER, REWARDS = "qwen3_vl", "internvl", "smolvlm"
SIZES = ((100, 80), (200, 60), (40, 130), (300, 300), (640, 480))
SAMPLED, ALIGNED, EVALUATED = 10, 6, 3
UNREADABLE = 1
"""Of the images to evaluate on."""
FOURTH = "counting"
TYPES = (*FACT_TYPES, FOURTH)
PROMPT = "Describe this image in detail."
TOKENS = 40
STEPS = 2
KEY = "FGAIF_TEST_KEY"
ENGINE = {
    "dtype": "float32",
    "max_model_len": 512,
    "max_num_seqs": 8,
    "kv_cache_gib": 0.1,
    "enforce_eager": True,
    "num_cpus": 0.5,
    "num_gpus": 1,
    "threads": 1,
}
GPUS = 3
"""The reward models, the learner and the rollout worker hold one each at the same time."""


@dataclass(frozen=True)
class Loop:
    """A finished run and its models."""

    folder: Path
    models: Path

    def rows(self, stage: str) -> list[dict[str, Any]]:
        return list(storage.read_rows(str(self.folder / stage)))

    def read(self, *names: str) -> Any:
        return json.loads(self.folder.joinpath(*names).read_text())


def settings(folder: Path, models: Path, endpoint: str) -> dict[str, Any]:
    lora = {"rank": 4, "alpha": 8}
    ppo = {"minibatch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-2, "critic_learning_rate": 1e-3}
    extractor = {"base_url": endpoint, "model": "rules", "prompt": "extract-v1", "api_key_env": KEY}
    return {
        "run": {"dir": str(folder / "run"), "seed": 0, "fact_types": [*FACT_TYPES, write_counting(folder)]},
        "ray": {"num_cpus": 8, "logical_gpus": GPUS, "object_store_gib": 0.2},
        "data": {
            "path": str(folder / "images"),
            "sample_images": SAMPLED,
            "align_images": ALIGNED,
            "evaluate_images": EVALUATED,
            "prompts": [PROMPT],
        },
        "policy": {"model": str(models / POLICY), "dtype": "float32"},
        "sample": {"max_tokens": TOKENS, "engine": ENGINE},
        "label": {"extractor": extractor, "verifier": {"model": str(models / VERIFIER), "engine": ENGINE}},
        "rewards": {
            "backbone": str(models / REWARDS),
            "dtype": "float32",
            "lora": lora,
            "batch_size": 4,
            "gpus_per_worker": 1,
            "cpus_per_worker": 0.5,
            "threads": 1,
        },
        "serve": {"port": 0, "placement": "shared", "num_cpus": 0.2, "num_gpus": 1, "threads": 1},
        "align": {
            "steps": STEPS,
            "rollout_batch_size": 8,
            "lora": lora,
            "ppo": ppo,
            "rollout": {"max_tokens": TOKENS, "sync": "adapter", "log_prob_tolerance": 1e-3, "engine": ENGINE},
            "gpus_per_worker": 1,
            "cpus_per_worker": 0.5,
            "threads": 1,
        },
        "evaluate": {"max_tokens": TOKENS, "engine": ENGINE},
        "report": {"examples": 2, "extremes": 1},
    }


def facts(_number: int, body: Request) -> Reply:
    """Some facts of each type, by the length of the segment; whatever is there is counted."""
    _response, asked = (json.loads(line) for line in re.findall(r'^(?:"|\[").*$', body["messages"][1]["content"], re.M))
    (segment,) = asked
    size = len(segment)
    kinds = {name: [f"It is number {size}."] if size % (2 + place) else [] for place, name in enumerate(FACT_TYPES)}
    return Reply.completion(kinds | {FOURTH: kinds["existence"]})


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    folder = tmp_path_factory.mktemp("loop")
    for name in (POLICY, VERIFIER, REWARDS):
        build(name, folder / name)
    (folder / "images").mkdir()
    for index in range(SAMPLED + ALIGNED + EVALUATED):
        name = f"{index:02d}.{'png' if index % 2 else 'jpg'}"
        photo(*SIZES[index % len(SIZES)], index).save(folder / "images" / name)
    (folder / "images" / name).write_text("no image")  # the last ones are held out
    with FakeOpenAI(facts) as endpoint:
        (folder / "config.yaml").write_text(yaml.safe_dump(settings(folder, folder, endpoint.url)))
        result = subprocess.run(
            [sys.executable, "-m", "jobs.pipeline", "--config", str(folder / "config.yaml")],
            capture_output=True,
            text=True,
            env=os.environ | {KEY: "key", "RAY_TMPDIR": "/tmp"},
            cwd=ROOT,
            check=False,
        )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return Loop(folder / "run", folder)


def test_every_stage_is_published(loop: Loop) -> None:
    published = (stages.RESPONSES, stages.FEEDBACK, stages.REWARDS, stages.POLICY, stages.EVALUATION, stages.REPORT)
    assert [name for name in published if storage.read_manifest(str(loop.folder), name) is None] == []
    assert not list(loop.folder.glob("*.partial"))


def test_responses_are_text_that_an_end_of_the_policy_or_the_length_has_ended(loop: Loop) -> None:
    front_end = load_front_end(str(loop.models / POLICY))
    assert len(front_end.eos_token_ids) == 2
    rows = loop.rows(stages.RESPONSES)
    assert len(rows) == SAMPLED
    for row in rows:
        *text, last = row["token_ids"]
        assert not {*text, last} & set(front_end.banned_token_ids)
        assert not set(text) & set(front_end.eos_token_ids)
        assert (last in front_end.eos_token_ids) == (row["finish_reason"] == "stop")
        assert row["finish_reason"] == "stop" or len(row["token_ids"]) == TOKENS
        assert row["response"] == front_end.decode(row["token_ids"])


def test_segments_are_labelled_for_the_types_of_the_configuration(loop: Loop) -> None:
    part = storage.list_parts(str(loop.folder / stages.FEEDBACK))[0]
    labels = pq.read_schema(part).field("segments").type.value_type.field("labels").type
    assert [field.name for field in labels] == list(TYPES)
    figures = loop.read(stages.FEEDBACK, "metrics.json")
    assert figures["labels"][FOURTH] == figures["labels"]["existence"]  # the endpoint gives both the same facts
    assert figures["facts"][FOURTH] > 0


def test_the_verifier_finds_each_fact_about_each_image_differently_likely(loop: Loop) -> None:
    rows = loop.rows(stages.FEEDBACK)
    assert len(rows) == SAMPLED
    found = [(row["image"], fact) for row in rows for segment in row["segments"] for fact in segment["facts"]]
    assert {fact["type"] for _, fact in found} == set(TYPES)
    likely = {(image, fact["text"]): fact["p_consistent"] for image, fact in found}
    assert all(0 < one < 1 for one in likely.values())
    assert len(set(likely.values())) == len(likely) > 1


def test_a_reward_model_is_trained_for_each_type(loop: Loop) -> None:
    assert [loop.read(stages.REWARDS, name, "metrics.json")["fact_type"] for name in TYPES] == list(TYPES)


def test_the_reward_models_score_segments_by_the_image(loop: Loop) -> None:
    folders = {name: str(loop.folder / stages.REWARDS / name) for name in TYPES}
    model = load_reward_model(load_backbone(str(loop.models / REWARDS), "float32"), folders)
    items = [ScoringItem([photo(*SIZES[seed], seed)], PROMPT, ["It is red. ", "It is large."]) for seed in range(2)]
    for scores in model.score_types(TYPES, items).values():
        assert all(abs(score.sum(axis=1) - 1).max() < 1e-5 for score in scores)
        assert abs(scores[0] - scores[1]).max() > 1e-4


def test_the_policy_is_rewarded_for_each_type(loop: Loop) -> None:
    for step in read_lines(str(loop.folder / stages.POLICY / "metrics.jsonl")):
        assert step["reward/total"] is not None
        shares = {name for name in step if name.startswith("hallucination/")}
        assert shares == {f"hallucination/{name}" for name in TYPES}


def test_the_engine_follows_the_learner(loop: Loop) -> None:
    rows = read_lines(str(loop.folder / stages.POLICY / "metrics.jsonl"))
    assert [row["step"] for row in rows] == [1, STEPS]
    assert [row["rollout/policy_version"] for row in rows] == [0, 1]
    assert max(row["rollout/log_prob_difference"] for row in rows) < 1e-4
    assert rows[-1]["kl/per_token_k3"] > 1e-4


def test_every_held_out_image_is_answered_before_and_after(loop: Loop) -> None:
    rows = loop.rows(stages.EVALUATION)
    counted = Counter((row["which"], row["task"]) for row in rows)
    readable = EVALUATED - UNREADABLE
    assert counted == {(which, task): readable for which in ("before", "after") for task in ("sampled", "greedy")}
    said: dict[str, list[str]] = {which: [] for which in ("before", "after")}
    for row in sorted(rows, key=lambda row: (row["task"], row["image"])):
        said[row["which"]].append(row["response"])
    assert said["before"] != said["after"]


def test_where_no_truth_is_known_lengths_are_measured(loop: Loop) -> None:
    metrics = loop.read(stages.EVALUATION, "metrics.json")
    assert (metrics["images"], metrics["rejected_images"]) == (EVALUATED - UNREADABLE, UNREADABLE)
    assert "not known" in metrics["note"]
    assert metrics["before"]["words_per_response"] > 0
    assert "hallucination_rate" not in metrics["after"]


def test_summary_and_report_show_each_type(loop: Loop) -> None:
    assert set(loop.read("summary.json")["rewards"]) == set(TYPES)
    html = (loop.folder / "report.html").read_text()
    assert "--type-counting: #0f766e;" in html
    assert '<i class="dot" style="background:var(--type-counting)"></i>counting' in html


def test_people_are_asked_about_each_type(loop: Loop) -> None:
    draw_audit(load_config(loop.models / "config.yaml"), 4)
    assert "how many there are" in (loop.folder / "audit" / "audit.html").read_text()
    assert set(loop.read("audit", "sample.json")["strata"]) == set(TYPES)
