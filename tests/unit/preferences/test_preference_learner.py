"""The learner of preferences, step by step and across a kill, without Ray."""

import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
import torch
from support.preference_data import preference_run

from actors.alignment import preference_learner
from actors.alignment.tasks import PreferenceTask
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.preferences.draws import PairPlan, share_of
from fgaif_ray.rl.run_log import read_lines

SETTINGS = (
    "align.algorithm=c-dpo",
    "align.steps=4",
    "align.lora.rank=2",
    "align.lora.alpha=4",
    "align.checkpoint_every=1",
    "align.threads=1",
    "align.dpo.pairs_per_step=4",
    "align.dpo.micro_batch_size=2",
    "align.dpo.learning_rate=0.01",
)


class Killed(Exception):
    """The process is gone."""


class Saved:
    """A checkpoint as Ray Train hands it to a new process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def as_directory(self) -> AbstractContextManager[str]:
        return nullcontext(str(self.folder))


class Processes:
    """Starts learners in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder, self.checkpoint, self.kill_after = folder, None, 0
        self.reported: list[int] = []
        monkeypatch.setattr(ray, "get_gpu_ids", list)
        monkeypatch.setattr(ray.train, "get_checkpoint", lambda: self.checkpoint)
        monkeypatch.setattr(ray.train, "report", self.report)
        monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None)
        monkeypatch.setattr(torch, "set_num_threads", lambda _: None)

    checkpoint: Saved | None

    def report(self, metrics: dict[str, int], checkpoint: Any) -> None:
        self.reported.append(metrics["step"])
        target = self.folder / f"checkpoint-{len(self.reported)}"
        shutil.copytree(checkpoint.path, target)
        self.checkpoint = Saved(target)
        if metrics["step"] == self.kill_after:
            raise Killed

    def run(self, config: Config, name: str, kill_after: int = 0) -> Path:
        """One process; after a kill, call it again for the next one."""
        self.kill_after = kill_after
        task = PreferenceTask(config, str(self.folder / name))
        try:
            outcome = preference_learner.train(task)
            assert outcome == {"steps": config.align.steps, "stopped": None}
        except Killed:
            pass
        return self.folder / name


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Processes:
    return Processes(monkeypatch, tmp_path)


def figures(folder: Path) -> list[dict[str, Any]]:
    """All metrics but those of the clock."""
    rows = read_lines(str(folder / "metrics.jsonl"))
    return [{name: row[name] for name in row if not name.startswith(("timing/", "goodput/"))} for row in rows]


def test_killed_and_resumed_is_uninterrupted_to_the_bit(processes: Processes, tmp_path: Path) -> None:
    config = preference_run(tmp_path, *SETTINGS)
    straight = processes.run(config, "straight")
    processes.checkpoint = None
    processes.run(config, "killed", kill_after=2)
    killed = processes.run(config, "killed")
    rows = figures(straight)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert figures(killed) == rows
    assert (killed / "adapter_model.safetensors").read_bytes() == (straight / "adapter_model.safetensors").read_bytes()
    assert rows[0]["dpo/loss"] == pytest.approx(0.6931, abs=1e-3) and rows[-1]["dpo/loss"] < rows[0]["dpo/loss"]
    assert all(row["count/pairs"] == 4 for row in rows)


def test_pairs_whose_image_is_gone_are_left_out(processes: Processes, tmp_path: Path) -> None:
    config = preference_run(tmp_path, *SETTINGS, "align.dpo.pairs_per_step=6", "align.steps=1")
    (tmp_path / "1.png").unlink()
    [row] = figures(processes.run(config, "run"))
    assert (row["count/pairs"], row["count/unreadable"]) == (4, 2)


def test_without_any_image_the_step_is_named(processes: Processes, tmp_path: Path) -> None:
    config = preference_run(tmp_path, *SETTINGS)
    for image in tmp_path.glob("*.png"):
        image.unlink()
    with pytest.raises(UserError, match="None of the images of step 1 can be read"):
        processes.run(config, "run")


def test_what_cannot_be_learnt_ends_the_run_with_the_reason(processes: Processes, tmp_path: Path) -> None:
    config = preference_run(tmp_path, *SETTINGS, "align.dpo.margin=9")
    task = PreferenceTask(config, str(tmp_path / "policy"))
    outcome = preference_learner.train(task)
    assert outcome["steps"] == 0 and "align.dpo.margin" in outcome["stopped"]


def test_a_learning_rate_that_breaks_it_stops_the_run(processes: Processes, tmp_path: Path) -> None:
    options = ("align.dpo.learning_rate=1e30", "align.dpo.schedule=constant", "align.guards.max_non_finite_streak=1")
    config = preference_run(tmp_path, *SETTINGS, *options)
    task = PreferenceTask(config, str(tmp_path / "policy"))
    outcome = preference_learner.train(task)
    assert "non-finite streak" in outcome["stopped"] and outcome["steps"] < 4


class TestDraws:
    def test_every_pair_comes_once_in_a_round(self) -> None:
        plan = PairPlan(5, seed=3)
        drawn = [place for step in range(5) for place in plan.draw(step, 3)]
        assert [sorted(drawn[start : start + 5]) for start in (0, 5, 10)] == [[0, 1, 2, 3, 4]] * 3
        assert drawn[:5] != drawn[5:10]

    def test_a_step_is_drawn_the_same_whenever_it_is(self) -> None:
        plan = PairPlan(5, seed=3)
        for step in range(3):
            plan.draw(step, 4)
        assert plan.draw(1, 4) == PairPlan(5, seed=3).draw(1, 4)
        assert [PairPlan(50, seed=3).draw(0, 9)] != [PairPlan(50, seed=4).draw(0, 9)]

    def test_workers_share_a_step(self) -> None:
        shares = [share_of(range(7), rank, 3) for rank in range(3)]
        assert sorted(place for share in shares for place in share) == list(range(7))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1

    def test_nothing_cannot_be_drawn_from(self) -> None:
        with pytest.raises(ValueError, match="no pairs"):
            PairPlan(0, seed=0)
