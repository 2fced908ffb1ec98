"""Nodes that are lost while a stage works on them: no row comes out twice or is missing, what was begun goes on.

In each test the stage has one node, which is lost, and then another one is started, as the autoscaler would. So all of
the stage's actors are lost at once.
"""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.alignment_runs import align_config
from support.fake_openai import FakeOpenAI
from support.label_faults import CONCURRENCY, WORKERS, check_rows, configure, count_questions, misbehaving_endpoint
from support.label_helpers import KEY_VARIABLE, check_account, write_responses
from support.local_nodes import LONGEST_S, LocalNodes, NodeJob
from support.lost_nodes import LOST, PARTS_BEFORE, Caller, check_said, lose_while, parts
from support.reward_helpers import save_reward_models, service_config
from support.reward_training import feedback_rows, job_config, publish_feedback
from support.sampling_runs import make_config

from fgaif_ray import storage
from fgaif_ray.calls.chat_caller import on_deck
from fgaif_ray.config import Config
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rl.run_log import read_lines
from fgaif_ray.shapes.render import render
from fgaif_ray.shapes.scenes import draw_scene

pytestmark = pytest.mark.timeout(2 * LONGEST_S)


@pytest.fixture
def endpoint() -> Iterator[FakeOpenAI]:
    with misbehaving_endpoint() as server:
        yield server


@pytest.mark.proof
@pytest.mark.ray
@pytest.mark.vllm
def test_a_lost_node_costs_no_sampled_response(nodes: LocalNodes, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for index in range(62):
        render(draw_scene("train", index)).save(tmp_path / "images" / f"{index:03d}.png")
    config = make_config(tmp_path / "images", tmp_path / "run")
    data = config.data.model_copy(update={"sample_images": 60, "align_images": 1, "evaluate_images": 1})
    config = config.model_copy(update={"data": data, "sample": config.sample.model_copy(update={"batch_size": 2})})
    node = nodes.add("inference", 1)
    with NodeJob("sample", config, nodes.address, tmp_path) as job:
        partial = storage.join(config.run.dir, "responses.partial")
        lose_while(nodes, job, "inference", 1, node, lambda: parts(partial) >= PARTS_BEFORE)
        check_said(job.finish())
    rows = list(storage.read_rows(storage.join(config.run.dir, "responses")))
    assert len(rows) == len({row["image"] for row in rows}) == 60


# Labels


@pytest.mark.proof
@pytest.mark.ray
@pytest.mark.vllm
def test_a_lost_node_costs_no_label_and_pays_no_call_twice(
    nodes: LocalNodes, tmp_path: Path, endpoint: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "key")
    config = configure(tmp_path, endpoint, images=30)
    responses = write_responses(config)
    node = nodes.add("data", 3)
    with NodeJob("label", config, nodes.address, tmp_path) as job:
        begun = count_questions(responses) // 3
        lose_while(nodes, job, "data", 3, node, lambda: len(endpoint.billed) >= begun)
        check_said(job.finish())
    check_rows(config, responses, without_image=1)
    check_account(config.run.dir, endpoint, may_be_lost=on_deck(CONCURRENCY) * WORKERS)


def labels_of(config: Config) -> dict[str, Any]:
    rows = storage.read_rows(storage.join(config.run.dir, "feedback"))
    return {
        row["sample_id"]: [
            (segment["text"], [(fact["type"], fact["text"]) for fact in segment["facts"]], segment["labels"])
            for segment in row["segments"]
        ]
        for row in rows
    }


@pytest.mark.proof
@pytest.mark.ray
@pytest.mark.vllm
def test_messages_that_get_lost_between_processes_change_no_label(
    tmp_path: Path, endpoint: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray loses requests and replies of calls to actors, a tenth each."""
    monkeypatch.setenv(KEY_VARIABLE, "key")
    failing = {"num_failures": -1, "req_failure_prob": 10, "resp_failure_prob": 10}
    chaos = json.dumps({"CoreWorkerService.grpc_client.PushTask": failing})
    labels = []
    for name, variables in (("quiet", {}), ("disturbed", {"RAY_testing_rpc_failure": chaos})):
        folder = tmp_path / name
        folder.mkdir()
        config = configure(folder, endpoint, images=24)
        responses = write_responses(config)
        logs = f"/tmp/rpc{time.time_ns() % 10**9}"
        endpoint.requests.clear()
        endpoint.billed.clear()
        with NodeJob("label", config, None, folder, RAY_TMPDIR=logs, **variables) as job:
            job.finish()
        check_rows(config, responses, without_image=1)
        labels.append(labels_of(config))
    written = [path.read_text(errors="replace") for path in Path(logs).rglob("*.log")]
    assert sum(text.count("Inject RPC") for text in written) > 0
    assert labels[0] == labels[1]


# Reward models


@pytest.mark.proof
@pytest.mark.ray
def test_reward_training_goes_on_after_its_last_epoch(nodes: LocalNodes, tmp_path: Path) -> None:
    config = job_config(tmp_path / "run", num_workers=2)
    publish_feedback(tmp_path / "run", feedback_rows(tmp_path / "images"))
    node = nodes.add("training", 2)
    partial = tmp_path / "run" / "rewards.partial"
    with NodeJob("train_rewards", config, nodes.address, tmp_path) as job:
        lose_while(nodes, job, "training", 2, node, lambda: any(partial.glob("*.checkpoint.json")))
        check_said(job.finish())
    for name in FACT_TYPES:
        metrics = json.loads((tmp_path / "run" / "rewards" / name / "metrics.json").read_text())
        assert [row["epoch"] for row in metrics["curve"]] == [1, 2, 3]


@pytest.mark.proof
@pytest.mark.ray
def test_the_reward_service_answers_or_says_why_not_and_comes_back(nodes: LocalNodes, tmp_path: Path) -> None:
    save_reward_models(tmp_path / "rewards")
    config = service_config(tmp_path)
    node = nodes.add("inference", 2)
    with NodeJob("serve_rewards", config, nodes.address, tmp_path) as job:
        job.wait_for(lambda: "Try it" in job.output)
        found = re.search(r"at (http://\S+) \(API", job.output)
        assert found is not None
        with Caller(found[1]) as caller:
            job.wait_for(lambda: len(caller.good()) >= 5)
            nodes.lose(node)
            nodes.add("inference", 2)
            job.wait_for(lambda: LOST.search(job.output) is not None)
            before = len(caller.good())
            job.wait_for(lambda: len(caller.good()) >= before + 10)
        check_said(job.output)
    statuses = {status for status, _ in caller.answers}
    print(f"{len(caller.answers)} answers: {statuses}")
    assert statuses <= {200, 429, 503, 504}
    assert all(set(body) == {"error"} for status, body in caller.answers if status != 200)
    assert all(reward == pytest.approx(caller.good()[0], abs=1e-4) for reward in caller.good())


# PPO


def ppo_config(folder: Path, steps: int, checkpoint_every: int) -> Config:
    save_reward_models(folder / "rewards")
    config = align_config(folder)
    # What a policy of random weights learns from two responses per step is not what these tests are about.
    guards = config.align.guards.model_copy(update={"patience": steps})
    update = {
        "steps": steps,
        "checkpoint_every": checkpoint_every,
        "label_selector": {"role": "training"},
        "guards": guards,
    }
    return config.model_copy(update={"align": config.align.model_copy(update=update)})


def last_step(config: Config) -> int:
    rows = read_lines(storage.join(config.run.dir, "policy.partial", "metrics.jsonl"))
    return max((row["step"] for row in rows), default=0)


def check_steps(config: Config, steps: int) -> None:
    rows = read_lines(storage.join(config.run.dir, "policy", "metrics.jsonl"))
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    assert all(row["count/missing_rewards"] == 0 for row in rows)
    assert [row["rollout/policy_version"] for row in rows] == list(range(steps))
    assert max(row["rollout/log_prob_difference"] for row in rows) < 1e-4


@pytest.mark.proof
@pytest.mark.ray
@pytest.mark.vllm
def test_ppo_outlives_the_node_of_everything_it_uses(nodes: LocalNodes, tmp_path: Path) -> None:
    config = ppo_config(tmp_path, steps=4, checkpoint_every=1)
    node = nodes.add("training", 3)
    with NodeJob("align", config, nodes.address, tmp_path) as job:
        lose_while(nodes, job, "training", 3, node, lambda: last_step(config) >= 2)
        check_said(job.finish())
    check_steps(config, 4)


@pytest.mark.proof
@pytest.mark.ray
@pytest.mark.vllm
def test_a_notice_makes_the_learner_checkpoint_before_its_node_is_lost(nodes: LocalNodes, tmp_path: Path) -> None:
    config = ppo_config(tmp_path, steps=12, checkpoint_every=100)
    nodes.add("inference", 3)
    node = nodes.add("training", 1)
    known = Path(config.run.dir) / "policy.partial" / "train" / "checkpoint_manager_snapshot.json"

    def has_checkpoint() -> bool:
        return known.exists() and "checkpoint_2" in known.read_text()

    with NodeJob("align", config, nodes.address, tmp_path) as job:
        job.wait_for(lambda: last_step(config) >= 1)
        assert not has_checkpoint()
        nodes.notice(node, 300)
        job.wait_for(has_checkpoint)
        nodes.lose(node)
        nodes.add("training", 1)
        output = job.finish()
    assert re.search(r"^Node \S+ \(training, \w{8}\) will be taken away in \d+ s\.$", output, re.MULTILINE)
    check_said(output)
    check_steps(config, 12)
