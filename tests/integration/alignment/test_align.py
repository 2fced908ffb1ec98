"""PPO end to end: real Serve, Train and vLLM on the embedded world with untrained models, and what interrupts it."""

import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import tenacity
import torch
from peft import PeftModel
from PIL import Image
from ray import serve
from ray.util.placement_group import placement_group_table
from safetensors.torch import load_file
from support.alignment_runs import align_config
from support.reward_helpers import CHECKPOINT, picture, save_reward_models

from actors.alignment.rewarder import Rewarder
from actors.alignment.rollout import PolicyVersion, Rollout, RolloutRequest, rollout_workers, sample
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.images import load_image
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rewards.preparation import SegmentedResponse
from fgaif_ray.rewards.scoring import ResponseVerdicts
from fgaif_ray.rl.policy import PolicyModel
from fgaif_ray.rl.run_log import read_lines
from fgaif_ray.segments import Span
from fgaif_ray.vlm.backbone import load_backbone
from jobs import align

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def service(ray_cluster: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Reward models that every run of this module links to, and their service, started once."""
    from actors.rewards import service as reward_service

    folder = tmp_path_factory.mktemp("rewards")
    save_reward_models(folder)
    config = align_config(folder)
    reward_service.deploy(config, {kind.name: str(kind) for kind in folder.iterdir() if kind.is_dir()})
    yield folder
    reward_service.shutdown()


def run_folder(service: Path, folder: Path) -> Path:
    (folder / "rewards").symlink_to(service)
    return folder


@pytest.fixture(scope="module")
def finished(service: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A run that nothing disturbs."""
    folder = run_folder(service, tmp_path_factory.mktemp("run"))
    config = align_config(folder)
    align.run(config)
    return config, folder / "policy"


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (60, 60, 3), dtype=np.uint8))


def test_a_run_leaves_what_it_promises(finished: tuple[Config, Path]) -> None:
    _, folder = finished
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "_manifest.json", "adapter_config.json", "adapter_model.safetensors", "README.md", "metrics.jsonl",
        "samples.jsonl", "tensorboard",
    }  # fmt: skip
    assert [row["step"] for row in read_lines(str(folder / "metrics.jsonl"))] == [1, 2, 3]
    assert not folder.with_name("policy.partial").exists()


def test_every_step_samples_from_the_newest_weights(finished: tuple[Config, Path]) -> None:
    rows = read_lines(str(finished[1] / "metrics.jsonl"))
    assert [row["rollout/policy_version"] for row in rows] == [0, 1, 2]
    # The policy has moved, by far more than the engine and the learner differ on it.
    assert rows[-1]["kl/per_token_k3"] > 1e-3
    assert max(row["rollout/log_prob_difference"] for row in rows) < 1e-5


def test_samples_are_logged_with_their_verdicts(finished: tuple[Config, Path]) -> None:
    rows = read_lines(str(finished[1] / "samples.jsonl"))
    assert {row["step"] for row in rows} == {1, 3}  # the first and the last
    spoken = [row for row in rows if row["segments"]]
    assert spoken
    for row in spoken:
        assert "".join(segment["text"] for segment in row["segments"]) == row["response"]
        assert all(segment["token_end"] < len(row["token_ids"]) for segment in row["segments"])


def test_the_published_adapter_loads_with_peft(finished: tuple[Config, Path]) -> None:
    base = load_backbone(CHECKPOINT, "float32")
    prompt = base.front_end.encode_prompt("Describe it.", [noise(0)])
    inputs = {"input_ids": torch.tensor([prompt.input_ids]), **prompt.image_inputs}
    before = base.model(**inputs).logits
    model = PeftModel.from_pretrained(base.model, str(finished[1]))
    assert float((model(**inputs).logits - before).abs().max()) > 1e-3


def test_a_finished_run_is_not_run_again(finished: tuple[Config, Path], capsys: pytest.CaptureFixture[str]) -> None:
    config, folder = finished
    before = (folder / "_manifest.json").stat().st_mtime_ns
    align.run(config)
    assert (folder / "_manifest.json").stat().st_mtime_ns == before
    assert "up to date" in capsys.readouterr().out


def test_a_run_without_a_critic_has_no_figures_of_one(service: Path, tmp_path: Path) -> None:
    tree = align_config(run_folder(service, tmp_path)).model_dump(mode="json")
    tree["align"] |= {"algorithm": "grpo", "samples_per_prompt": 2, "steps": 1}
    align.run(Config.model_validate(tree))
    (row,) = read_lines(str(tmp_path / "policy" / "metrics.jsonl"))
    assert not [name for name in row if name.startswith("critic/")]
    assert row["update/skipped"] == 0
    assert "adapter_model.safetensors" in {path.name for path in (tmp_path / "policy").iterdir()}


def test_an_engine_that_disagrees_stops_the_run(service: Path, tmp_path: Path) -> None:
    """And the same command, with what stopped it repaired, goes on."""
    folder = run_folder(service, tmp_path)
    with pytest.raises(UserError, match=r"self-check of .*: log-probabilities of engine and learner differ"):
        align.run(align_config(folder, tolerance=1e-12))
    assert not (folder / "policy").exists()


def kill_learner_after(metrics: Path, step: int, killed: list[int]) -> threading.Thread:
    """Kills this test's own Ray Train worker as soon as the step is logged, and notes its process id."""

    def learners() -> list[psutil.Process]:
        own = psutil.Process().children(recursive=True)
        return [process for process in own if "RayTrainWorker" in process.name() + " ".join(process.cmdline())]

    def watch() -> None:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            if any(row["step"] >= step for row in read_lines(str(metrics))):
                for process in learners():
                    killed.append(process.pid)
                    os.kill(process.pid, signal.SIGKILL)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_a_killed_learner_goes_on_as_if_nothing_had_happened(
    service: Path, finished: tuple[Config, Path], tmp_path: Path
) -> None:
    """The same seed in another folder, the learner killed after step 2: same samples, same policy."""
    folder = run_folder(service, tmp_path)
    config = align_config(folder)
    killed: list[int] = []
    killer = kill_learner_after(folder / "policy.partial" / "metrics.jsonl", 2, killed)
    align.run(config)
    killer.join()
    assert len(killed) == 1

    def samples(path: Path) -> list[tuple[Any, ...]]:
        rows = read_lines(str(path / "samples.jsonl"))
        return [(row["step"], row["sample_id"], row["token_ids"], Path(row["image"]).name) for row in rows]

    resumed = folder / "policy"
    assert [row["step"] for row in read_lines(str(resumed / "metrics.jsonl"))] == [1, 2, 3]
    assert samples(resumed) == samples(finished[1])
    weights, expected = (load_file(path / "adapter_model.safetensors") for path in (resumed, finished[1]))
    # The reward service may score the same responses in other batches: equal to rounding, not to the bit.
    assert all(torch.allclose(weights[name], expected[name], atol=1e-3) for name in expected)


def test_a_run_that_samples_ahead_goes_on_from_the_policy_that_sampled(service: Path, tmp_path: Path) -> None:
    """One step off, killed after step 2: every batch is of the policy before the newest, also that resumed with.

    The difference of log-probabilities is measured against the policy that sampled, so it shows which one did.
    """
    folder = run_folder(service, tmp_path)
    killed: list[int] = []
    killer = kill_learner_after(folder / "policy.partial" / "metrics.jsonl", 2, killed)
    align.run(align_config(folder, ahead=True))
    killer.join()
    assert len(killed) == 1
    rows = read_lines(str(folder / "policy" / "metrics.jsonl"))
    assert [(row["step"], row["rollout/policy_version"], row["rollout/staleness"]) for row in rows] == [
        (1, 0, 0), (2, 0, 1), (3, 1, 1),
    ]  # fmt: skip
    assert max(row["rollout/log_prob_difference"] for row in rows) < 1e-5
    assert rows[-1]["importance/weight_max"] > 1 + 1e-3  # the newest policy is another one than sampled
    assert [row["update/learning_rate_scale"] for row in rows] == pytest.approx([1, 2 / 3, 1 / 3])
    assert all(row["kl/loss"] is not None and 0 < row["goodput/step_share"] <= 1 for row in rows)


@pytest.mark.parametrize("sync", ["adapter", "merged"])
def test_the_engine_serves_what_the_learner_trains(ray_cluster: dict[str, Any], tmp_path: Path, sync: str) -> None:
    """Version after version, in both ways: the engine's log-probabilities are the learner's, and follow its changes."""
    base = load_backbone(CHECKPOINT, "float32")
    torch.manual_seed(0)
    config = align_config(tmp_path, sync)
    config = config.model_copy(update={"align": config.align.model_copy(update={"num_workers": 3})})
    model = PolicyModel(base, config.align.lora)
    requests = []
    for shade in range(6):
        path = tmp_path / f"{shade}.png"
        path.write_bytes(picture(shade))
        requests.append(RolloutRequest(base.front_end.prompt_ids("Describe it."), (str(path),), shade))
    images = [load_image(request.images[0]) for request in requests]

    def learner_log_probs(rollouts: list[Rollout]) -> torch.Tensor:
        rows = model.encode(["Describe it."] * 6, images, [one.token_ids for one in rollouts])
        with torch.no_grad():
            return model.log_probs(rows).log_probs

    def engine_log_probs(rollouts: list[Rollout], width: int) -> torch.Tensor:
        return torch.tensor([[*one.log_probs, *[0.0] * (width - len(one.log_probs))] for one in rollouts])

    with rollout_workers(config, base.front_end.banned_token_ids) as workers:
        [worker] = workers
        previous = None
        rollouts: list[Rollout] = []
        for number in range(3):
            folder = tmp_path / f"v{number}"
            model.save_policy(folder)
            before, rollouts = rollouts, sample([worker], requests, PolicyVersion(number, str(folder)))
            mine = learner_log_probs(rollouts)
            assert float((mine - engine_log_probs(rollouts, mine.shape[1])).abs().max()) < 1e-4
            if previous is not None:
                assert mine.shape != previous.shape or float((mine - previous).abs().max()) > 1e-2
            assert {one.policy_version for one in rollouts} == {number}
            assert all((one.token_ids[-1] == base.eos_token_id) == (one.finish_reason == "stop") for one in rollouts)
            previous = mine
            with torch.no_grad():
                for parameter in model.policy_parameters().values():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        # Three callers at once: two parts of a batch of one version, and one that asks for another in between.
        versions = [PolicyVersion(number, str(tmp_path / f"v{number}")) for number in range(3)]
        parts = [(requests[:2], versions[2]), (requests, versions[1]), (requests[2:], versions[2])]
        first, other, rest = ray.get([worker.generate.remote(part, version) for part, version in parts])
        assert [one.token_ids for one in first + rest] == [one.token_ids for one in rollouts]
        assert [one.token_ids for one in other] == [one.token_ids for one in before]
    assert {one["state"] for one in placement_group_table().values()} == {"REMOVED"}


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class FlakyRewards:
    """Answers like the gateway, but fails its first call and never scores the item "lost"."""

    def __init__(self) -> None:
        self.calls = 0

    async def score_responses(self, items: list[dict[str, Any]]) -> list[ResponseVerdicts | None]:
        self.calls += 1
        if self.calls <= (9 if items[0]["prompt"] == "much later" else 1):
            raise RuntimeError("not yet")
        response = SegmentedResponse("ok", [Span(0, 2)], [1])
        verdicts = ResponseVerdicts(response, [0], dict.fromkeys(FACT_TYPES, np.array([[0, 1, 0]], np.float32)), "v1")
        return [None if item["prompt"] == "lost" else verdicts for item in items]


def test_rewards_are_asked_for_again_and_never_made_up(
    ray_cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve.run(FlakyRewards.bind(), name="flaky", route_prefix=None)
    pauses: list[float] = []
    monkeypatch.setattr(tenacity.nap, "time", SimpleNamespace(sleep=pauses.append))
    items = [
        {"prompt": prompt, "image": b"", "response": None, "response_token_ids": [1]} for prompt in ("a", "lost", "b")
    ]
    verdicts = Rewarder("flaky", 30.0, 2, FACT_TYPES).score(items)
    paused = len(pauses)
    late = [items[0] | {"prompt": "much later"}]
    assert Rewarder("flaky", 30.0, 2, FACT_TYPES).score(late)[0].failure is None
    serve.delete("flaky")
    waited = pauses[paused:]
    assert len(waited) > 4 and max(waited) <= 10  # a service that is down is waited for
    assert [verdict.probabilities is None for verdict in verdicts] == [False, True, False]
    assert verdicts[0].response == "ok" and verdicts[0].token_ends == (0,)
    assert verdicts[1].failure is not None and verdicts[1].refused
    assert pauses[:paused] == [0.5]  # for the call that failed; what the models cannot score is not asked again
