"""The shipped configurations fit the GPUs that they are for, and hold what our findings call decisive."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.official_models import CONFIGS, PARAMETERS, write_official
from support.paths import ROOT

from fgaif_ray.cluster.dry_run import dry_run
from fgaif_ray.cluster.memory_plan import MemoryPlan, plan_memory
from fgaif_ray.cluster.node_types import ClusterFile, NodeType
from fgaif_ray.cluster.plan import plan_cluster
from fgaif_ray.config import Config, load_config
from jobs.cli import main

GIB = 1 << 30
LAPTOP_GIB = 16


@dataclass(frozen=True)
class Machine:
    """What a configuration is for."""

    gpus: int
    gib: int
    cpus: int = 8


MACHINES = {
    "qwen3-vl-2b-24gb": Machine(1, 24),
    "qwen2.5-vl-7b-80gb": Machine(1, 80),
    "qwen2.5-vl-7b-8x80gb": Machine(8, 80, cpus=64),
    "smolvlm-500m-cpu": Machine(0, 0),
    "llava-1.5-7b": Machine(8, 80, cpus=64),
    "paper": Machine(4, 80, cpus=64),
}
OURS = sorted(set(MACHINES) - {"paper"})
MODELS = ("policy.model", "label.verifier.model", "rewards.backbone")


def shipped(name: str) -> Config:
    return load_config(ROOT / "configs" / f"{name}.yaml")


def with_configurations(name: str, folder: Path) -> tuple[str, ...]:
    """Overrides that put folders with the models' ``config.json`` in."""
    config = shipped(name)
    models = (config.policy.model, config.label.verifier.model, config.rewards.backbone)
    return tuple(f"{key}={write_official(model, folder)}" for key, model in zip(MODELS, models, strict=True))


def plan(name: str, folder: Path) -> MemoryPlan:
    config = load_config(ROOT / "configs" / f"{name}.yaml", with_configurations(name, folder))
    machine = MACHINES[name]
    node = NodeType("machine", {"CPU": machine.cpus, "GPU": machine.gpus}, 1)
    cluster = ClusterFile(node.name, (node,), 0, node.name)
    return plan_memory(config, cluster, plan_cluster(config, cluster), machine.gib * GIB or None)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_models_size_is_the_published_one(name: str, tmp_path: Path) -> None:
    assert dry_run(write_official(name, tmp_path), "bfloat16").parameters == PARAMETERS[name]


def test_every_configuration_for_real_models_is_looked_at() -> None:
    found = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    assert found - {"shapes", "serve-rewards"} == set(MACHINES)
    named = {model for name in MACHINES for model in (shipped(name).policy.model, shipped(name).rewards.backbone)}
    assert named <= set(CONFIGS)


@pytest.mark.parametrize("name", sorted(set(MACHINES) - {"smolvlm-500m-cpu"}))
def test_all_of_it_fits_the_gpus_that_it_is_for(name: str, tmp_path: Path) -> None:
    found = plan(name, tmp_path)
    assert list(found.warnings()) == []
    assert found.loads and [load.actors for load in found.loads if load.fits is not True] == []


def test_on_one_gpu_learner_rollouts_and_rewards_lie_together(tmp_path: Path) -> None:
    found = plan("qwen3-vl-2b-24gb", tmp_path)
    assert "SharedReward + Learner + RolloutWorker" in {load.actors for load in found.loads}


def test_a_laptop_holds_all_that_runs_at_a_time(tmp_path: Path) -> None:
    found = plan("smolvlm-500m-cpu", tmp_path)
    assert list(found.warnings()) == []
    together = [one for one in found.holdings if one.stage in ("serve_rewards", "align")]
    assert len(together) == 3 and not any(one.request.num_gpus for one in found.holdings)
    assert sum(one.total * one.count for one in together) < LAPTOP_GIB * GIB
    assert max(one.total for one in found.holdings) < LAPTOP_GIB * GIB


def test_the_command_in_the_file_says_that_it_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = ROOT / "configs" / "qwen3-vl-2b-24gb.yaml"
    command = re.findall(r"`fgaif plan (--config \S+ --gpu-memory \d+)`", file.read_text())
    monkeypatch.chdir(ROOT)
    assert len(command) == 1
    words = [
        word
        for change in (*with_configurations(file.stem, tmp_path), "ray.logical_gpus=1", "ray.num_cpus=8")
        for word in ("--set", change)
    ]
    assert main("plan", [*command[0].split(), *words]) == 0
    output = capsys.readouterr().out
    assert "SharedReward + Learner + RolloutWorker" in output
    assert "warning" not in output and " NO" not in output


@pytest.mark.parametrize("name", OURS)
def test_what_our_findings_call_decisive_is_set(name: str) -> None:
    config = shipped(name)
    assert config.align.ppo.value_clip is None
    assert config.align.reward.length_penalty > 0 and config.align.reward.length_target > 0
    assert config.align.reward.length_target < config.align.rollout.max_tokens
    assert config.data.max_pixels is not None
    guards = config.align.guards
    assert None not in (guards.max_length_growth, guards.max_unfinished_share, guards.max_repeated_share)
