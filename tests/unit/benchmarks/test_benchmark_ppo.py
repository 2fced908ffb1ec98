"""The benchmark of PPO: its part that starts neither Ray nor vLLM runs, and compares equal work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import PAPER_SETUP
from benchmarks.ppo import KEYS, QUICK
from benchmarks.ppo_rounds import Rounds, Side, load_policy, take_turns
from benchmarks.ppo_update import encode_captions, update_passes
from fgaif_ray.config import Config, load_config
from fgaif_ray.rl.policy import EncodedRows
from fgaif_ray.rl.step import Experience, PPOUpdater
from fgaif_ray.vlm.group import LearnerGroup

POLICY = "fgaif_ray/shapes/checkpoints/policy"
TINY = (*QUICK, "align.rollout_batch_size=6", "align.ppo.minibatch_size=3", "align.ppo.micro_batch_size=2")


@pytest.fixture(scope="module")
def config(repository: Path) -> Config:
    return load_config(repository / "configs/shapes.yaml", [*PAPER_SETUP, *TINY, f"policy.model={repository}/{POLICY}"])


def test_it_prints_one_object_whatever_was_measured(repository: Path) -> None:
    changes = [word for change in TINY for word in ("--set", change)]
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.ppo", "--only", "update", "--quick", *changes],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=repository,
    )
    figures = json.loads(result.stdout.splitlines()[-1])
    assert tuple(figures) == KEYS
    assert figures.pop("update_over_torch") > 0
    assert set(figures.values()) == {None}


def test_the_bare_loop_goes_through_the_micro_batches_of_the_update(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_policy(config)
    rows = encode_captions(config, model)
    zeros = torch.zeros(len(rows), rows.response_width)
    experience = Experience(
        rows=rows,
        behaviour_log_probs=zeros,
        old_log_probs=zeros,
        old_values=zeros,
        advantages=zeros,
        returns=zeros,
        mask=torch.arange(rows.response_width) < rows.response_lengths[:, None],
        metrics={},
    )
    seen: list[torch.Tensor] = []
    values = model.values

    def recorded(part: EncodedRows) -> torch.Tensor:
        seen.append(part.input_ids)
        return values(part)

    monkeypatch.setattr(model, "values", recorded)
    ppo = config.align.ppo
    updater = PPOUpdater(model, ppo, LearnerGroup(model.device), config.align.steps)
    updater.update(experience, 0, torch.Generator().manual_seed(7), 2)
    expected = [rows.select(chunk).input_ids for chunk in update_passes(rows, ppo, 2, 7)]
    assert len(seen) == len(expected) == 8
    assert all(torch.equal(one, other) for one, other in zip(seen, expected, strict=True))


def test_sides_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[tuple[str, int]] = []

    def side(name: str) -> Side:
        def work(number: int) -> int:
            calls.append((name, number))
            return 3

        return work

    found = take_turns(side("ours"), side("theirs"), 2)
    assert calls == [("theirs", 0), ("ours", 0), ("ours", 1), ("theirs", 1), ("theirs", 2), ("ours", 2)]
    assert len(found.ours) == len(found.theirs) == 2


def test_the_ratio_is_the_median_of_the_rounds() -> None:
    assert Rounds([1.0, 4.0, 9.0], [1.0, 2.0, 3.0]).ratio == 2.0
