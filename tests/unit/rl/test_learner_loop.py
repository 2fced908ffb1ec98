"""The learner's loop, step by step and across a kill, with an engine and rewards that repeat to the bit.

vLLM and Serve put requests into batches as they come, so the runs of `test_align.py` repeat only to rounding. Here a
plain model in the test takes the place of the engine, and a function that of the reward service.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import pytest
import ray
import ray.train
import torch
from PIL import Image
from safetensors.torch import load_file
from support.paths import ROOT

from actors.alignment import experience, learner
from actors.alignment.rewarder import TypeVerdicts
from actors.alignment.rollout import PolicyVersion, RefusedRollout, Rollout, RolloutRequest
from actors.alignment.run import hold_out
from actors.alignment.tasks import LearnerTask
from benchmarks import PAPER_SETUP
from fgaif_ray.config import Config, LoRAOptions, load_config
from fgaif_ray.errors import UserError
from fgaif_ray.images import load_images
from fgaif_ray.rl.guards import TrainingStopped
from fgaif_ray.rl.policy import PolicyModel
from fgaif_ray.rl.run_log import read_lines
from fgaif_ray.vlm.backbone import load_backbone

CHECKPOINT = str(ROOT / "fgaif_ray/shapes/checkpoints/policy")
PROMPT = "Describe it."
STEPS = 4


class Killed(Exception):
    """The process is gone."""


class Engine:
    """Answers with words that the seed decides, and their log-probabilities under the version asked for."""

    def __init__(self) -> None:
        self.model = PolicyModel(load_backbone(CHECKPOINT, "float32"), LoRAOptions(rank=2, alpha=4))
        self.sampled: list[tuple[int, str]] = []
        self.requests: list[RolloutRequest] = []
        self.error = self.error_of_probe = 0.0
        self.ignores_adapter = False
        self.right_at = 2
        """Version whose greedy answers are right."""
        self.skipped = 0
        """Tokens of the prompt that it leaves out."""

    def sample(
        self, _workers: Any, requests: Sequence[RolloutRequest], version: PolicyVersion
    ) -> list[Rollout | RefusedRollout]:
        self.requests += requests
        readable = [request for request in requests if Path(request.images[0]).read_bytes()]
        answered = iter(self._answer(readable, version) if readable else ())
        return [next(answered) if request in readable else RefusedRollout("it is empty") for request in requests]

    def _answer(self, requests: Sequence[RolloutRequest], version: PolicyVersion) -> list[Rollout]:
        weights = load_file(Path(version.folder, "adapter_model.safetensors"))
        with torch.no_grad():
            for name, parameter in self.model.policy_parameters().items():
                parameter.copy_(weights[name.removeprefix("_peft.").replace(".policy.", ".")])
        digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in weights.values())).hexdigest()
        if version.number >= 0 and not requests[0].greedy:  # not the self-check's
            self.sampled.append((version.number, digest))
        answers = []
        for request in requests:
            if request.greedy:
                answers.append([60 + (version.number == self.right_at)])
                continue
            generator = torch.Generator().manual_seed(request.seed)
            answers.append(torch.randint(60, 120, (2 + request.seed % 4,), generator=generator).tolist())
        images = [load_images(request.images) for request in requests]
        with torch.no_grad():
            rows = self.model.encode([PROMPT] * len(answers), images, answers)
            role: Any = "reference" if self.ignores_adapter else "policy"
            error = self.error if version.number >= 0 else self.error_of_probe
            log_probs = self.model.log_probs(rows, role).log_probs + error
        prompts = [tuple(ids[: rows.prompt_lengths[row]]) for row, ids in enumerate(rows.input_ids.tolist())]
        return [
            Rollout(tuple(ids), tuple(scores[: len(ids)].tolist()), "stop", version.number, prompt[self.skipped :])
            for ids, scores, prompt in zip(answers, log_probs, prompts, strict=True)
        ]


class Rewards:
    """Likes even tokens at the end."""

    items: ClassVar[list[dict[str, Any]]] = []
    """That were asked about."""

    def __init__(self, *_: Any) -> None:
        self.items.clear()

    def score(self, items: Sequence[dict[str, Any]]) -> list[TypeVerdicts]:
        self.items.extend(items)
        truth, lie, absent = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)
        return [
            TypeVerdicts(
                spans=((0, 1),),
                token_ends=(len(ids) - 1,),
                response="x",
                probabilities=(((lie, truth)[ids[-1] % 2], absent, absent),),
            )
            for ids in (item["response_token_ids"] for item in items)
        ]


class Saved:
    """A checkpoint as Ray Train hands it to a new process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def as_directory(self) -> AbstractContextManager[str]:
        return nullcontext(str(self.folder))


class Runs:
    """Starts learners in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.engine, self.folder, self.saved = Engine(), folder, {}
        self.checkpoint: Saved | None = None
        self.kill_after: int | None = None
        self.notice_from: int | None = None
        self.reported: list[int] = []
        self.settings: dict[str, Any] = {}
        (folder / "images").mkdir()
        self.images = []
        for shade in range(6):
            self.images.append(str(folder / "images" / f"{shade}.png"))
            Image.new("RGB", (60, 60), (40 * shade, 90, 200)).save(self.images[-1])
        monkeypatch.setattr(experience, "sample", self.engine.sample)
        monkeypatch.setattr(learner, "Rewarder", Rewards)
        monkeypatch.setattr(ray, "get", lambda _: None)
        monkeypatch.setattr(ray, "get_gpu_ids", list)
        monkeypatch.setattr(ray.train, "get_checkpoint", lambda: self.checkpoint)
        monkeypatch.setattr(ray.train, "report", self.report)
        monkeypatch.setattr(ray.train, "get_preemption_info", self.notice)

    def notice(self) -> str | None:
        """What Ray Train says once the node is about to go: from the moment that so many batches are sampled."""
        noticed = self.notice_from is not None and len(self.engine.sampled) >= self.notice_from
        return "soon" if noticed else None

    def report(self, metrics: dict[str, int], checkpoint: Any) -> None:
        self.reported.append(metrics["step"])
        target = self.folder / f"checkpoint-{len(list(self.folder.iterdir()))}"
        shutil.copytree(checkpoint.path, target)
        self.checkpoint = Saved(target)
        if metrics["step"] == self.kill_after:
            raise Killed

    def run(self, name: str, staleness: int, kill_after: int | None = None, every: int = 1) -> Path:
        """One process; after a kill, call it again for the next one."""
        self.kill_after = kill_after
        config = self.config(name, staleness, every)
        asked, evaluation = hold_out({(path,): [PROMPT] for path in self.images}, config.align)
        task = LearnerTask(config, tuple(asked), str(self.folder / name), None, "none", (), evaluation=evaluation)
        try:
            one = learner.Learner(task)
            one.run()
        except Killed:
            one._source._sampling.shutdown(wait=True)  # what ran ahead, so that it does not count for the next process
        finally:
            one.close()
        return self.folder / name

    def config(self, name: str, staleness: int, every: int = 1) -> Config:
        settings = {
            "run.dir": self.folder / name,
            "data.prompts": f"['{PROMPT}']",
            "policy.model": CHECKPOINT,
            "align.steps": STEPS,
            "align.rollout_batch_size": 6,
            "align.samples_per_prompt": 2,
            "align.lora.rank": 2,
            "align.lora.alpha": 4,
            "align.ppo.epochs": 1,
            "align.ppo.minibatch_size": 6,
            "align.ppo.learning_rate": 0.01,
            "align.ppo.schedule": "cosine",
            "align.kl.placement": "loss",
            "align.kl.target": 1.0,
            "align.rollout.max_staleness": staleness,
            "align.rollout.log_prob_tolerance": 1e-4,
            "align.checkpoint_every": every,
            "align.threads": 1,
        } | self.settings
        return load_config(
            "configs/shapes.yaml", [*PAPER_SETUP, *(f"{key}={value}" for key, value in settings.items())]
        )


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runs:
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "set_num_threads", lambda _, restore=threads: None)
    return Runs(monkeypatch, tmp_path)


def digest_of(folder: Path) -> str:
    """Of a published adapter, as the engine makes it."""
    weights = load_file(folder / "adapter_model.safetensors")
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in weights.values())).hexdigest()


def figures(folder: Path) -> list[dict[str, Any]]:
    """All metrics but those of the clock."""
    rows = read_lines(str(folder / "metrics.jsonl"))
    return [{name: row[name] for name in row if not name.startswith(("timing/", "goodput/"))} for row in rows]


@pytest.mark.parametrize("staleness", [0, 1])
def test_killed_and_resumed_is_uninterrupted_to_the_bit(runs: Runs, staleness: int) -> None:
    straight = runs.run("straight", staleness)
    sampled, runs.engine.sampled, runs.checkpoint = runs.engine.sampled, [], None
    runs.run("killed", staleness, kill_after=2)
    before = len(runs.engine.sampled)
    killed = runs.run("killed", staleness)

    ahead = [0, 0, 1, 2] if staleness else [0, 1, 2, 3]
    assert [number for number, _ in sampled] == ahead
    assert [row["rollout/policy_version"] for row in figures(straight)] == ahead
    assert [row["rollout/staleness"] for row in figures(straight)] == ([0, 1, 1, 1] if staleness else [0, 0, 0, 0])
    assert runs.engine.sampled[before:] == sampled[2:]  # the same weights, by their digest
    assert figures(killed) == figures(straight)
    assert (killed / "adapter_model.safetensors").read_bytes() == (straight / "adapter_model.safetensors").read_bytes()


def test_rewards_are_scaled_by_the_last_steps_across_a_kill(runs: Runs) -> None:
    as_it_is = figures(runs.run("plain", 0))
    runs.settings, runs.checkpoint = {"align.reward.scale": "running_std", "align.reward.scale_steps": 3}, None
    straight = figures(runs.run("straight", 0))
    runs.checkpoint = None
    runs.run("killed", 0, kill_after=2)
    assert figures(runs.run("killed", 0)) == straight
    factors = [row["reward_scale/existence"] for row in straight]
    assert len(set(factors)) == STEPS and min(factors) > 1
    assert straight[0]["reward/existence"] == pytest.approx(factors[0] * as_it_is[0]["reward/existence"])


@pytest.mark.parametrize("staleness", [0, 1])
def test_the_best_of_the_evaluated_policies_is_published_with_the_last_beside_it(runs: Runs, staleness: int) -> None:
    runs.settings = {"align.evaluate_every": 2, "align.evaluate_images": 2, "align.best_by": "reward/total"}
    straight = runs.run("straight", staleness)
    rows = figures(straight)
    known = {row["step"]: row.get("evaluation/reward/total") for row in rows}
    assert known == {0: -1, 1: None, 2: 1, 3: None, 4: -1}
    assert [row["evaluation/hallucination/overall"] for row in rows if row["step"] in (0, 2, 4)] == [1, 0, 1]

    sampled = dict(runs.engine.sampled)
    published, last = (digest_of(folder) for folder in (straight, straight / "last"))
    assert published == sampled[2]
    assert last not in sampled.values()  # nothing is sampled from it any more

    runs.checkpoint = None
    runs.run("killed", staleness, kill_after=3)
    killed = runs.run("killed", staleness)
    assert figures(killed) == rows
    assert [digest_of(folder) for folder in (killed, killed / "last")] == [published, last]


def test_an_evaluation_before_the_first_step_is_not_told_twice(runs: Runs) -> None:
    runs.settings = {"align.evaluate_every": 2, "align.evaluate_images": 2}
    runs.run("again", 0, kill_after=1)
    runs.checkpoint = None
    folder = runs.run("again", 0)
    assert [row["step"] for row in figures(folder)] == [0, 1, 2, 3, 4]
    assert not (folder / "last").exists()


def test_evaluations_change_nothing_that_is_learnt(runs: Runs) -> None:
    runs.settings = {"align.evaluate_every": 3, "align.evaluate_images": 2}
    images = list(runs.images)
    watched = runs.run("watched", 0)
    runs.settings, runs.checkpoint, runs.images = {}, None, images[:4]
    unwatched = runs.run("unwatched", 0)
    assert digest_of(watched) == digest_of(unwatched)


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_notice_is_followed_by_a_checkpoint_before_the_update_that_was_sampled_for(
    runs: Runs, staleness: int
) -> None:
    """And that checkpoint is as good as any: a run that goes on from it is the uninterrupted one."""
    straight = runs.run("straight", staleness, every=STEPS)
    assert runs.reported == [STEPS]
    runs.engine.sampled, runs.checkpoint, runs.reported, runs.notice_from = [], None, [], 3
    killed = runs.run("killed", staleness, kill_after=2, every=STEPS)
    assert runs.reported == [2]
    runs.notice_from = None
    runs.run("killed", staleness, every=STEPS)
    assert runs.reported == [2, STEPS]
    assert figures(killed) == figures(straight)
    assert (killed / "adapter_model.safetensors").read_bytes() == (straight / "adapter_model.safetensors").read_bytes()


def test_messages_name_images_in_place_of_holding_them(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By absolute paths: a replica of the reward service may have another working folder."""
    absolute = {Path(path) for path in runs.images}
    runs.images = [os.path.relpath(path) for path in runs.images]
    runs.run("named", 0)
    asked = [request.images for request in runs.engine.requests]
    scored = [item["images"] for item in Rewards.items]
    assert {path for images in (*asked, *scored) for path in images} == {str(path) for path in absolute}
    assert len(scored) == 6 * STEPS < len(asked)  # the self-check's have no rewards


def test_what_cannot_be_read_is_left_out_of_its_step(runs: Runs) -> None:
    Path(runs.images[0]).write_bytes(b"")
    rows = figures(runs.run("broken", 0))
    shown = [row["count/unreadable"] for row in rows]
    assert len(rows) == STEPS and set(shown) == {0, 2}  # two responses to an image
    assert len(Rewards.items) == 6 * STEPS - sum(shown)


def test_a_step_without_a_readable_image_ends_the_run(runs: Runs) -> None:
    for path in runs.images:
        Path(path).write_bytes(b"")
    with pytest.raises(UserError, match=r"None of the images of step 1 can be read, .*\.png for one"):
        runs.run("empty", 0)


def test_the_probe_of_a_stale_batch_compares_with_the_policy_that_sampled(runs: Runs) -> None:
    rows = figures(runs.run("probed", 1))
    assert max(row["rollout/log_prob_difference_max"] for row in rows) < 1e-4
    assert rows[-1]["importance/weight_max"] > 1.001  # the newest policy is another one


def test_a_sampler_that_differs_from_its_version_stops_a_run_that_samples_ahead(runs: Runs) -> None:
    runs.engine.error = 0.01
    with pytest.raises(TrainingStopped, match="log-probability mismatch: on the tokens of policy version 0"):
        runs.run("differs", 1)


def test_an_engine_that_computes_something_else_is_found_before_the_first_step(runs: Runs) -> None:
    runs.engine.error_of_probe = 0.01
    with pytest.raises(TrainingStopped, match=r"self-check of .*: log-probabilities .* differ by 0\.01 nats"):
        runs.run("differs", 0)
    assert runs.engine.sampled == []


def test_an_engine_that_ignores_the_adapter_is_found_though_a_new_one_changes_nothing(runs: Runs) -> None:
    runs.engine.ignores_adapter = True
    with pytest.raises(TrainingStopped, match=r"the engine ignores the adapter .* set align\.rollout\.sync=merged"):
        runs.run("ignores", 0)


def test_an_engine_that_reads_another_prompt_stops_a_run(runs: Runs) -> None:
    runs.engine.skipped = 1
    with pytest.raises(
        TrainingStopped, match=r"prompt mismatch: .* about .*, from position \d+ on.* `fgaif check-model"
    ):
        runs.run("differs", 0)


def test_a_guard_fires_at_the_threshold_of_the_configuration(runs: Runs) -> None:
    runs.settings = {"align.guards.min_entropy": 1000, "align.guards.patience": 2}
    with pytest.raises(
        TrainingStopped, match=r"^entropy collapse: .* less than 1000 for 2 steps .*guards\.min_entropy$"
    ):
        runs.run("strict", 0)
    assert len(figures(runs.folder / "strict")) == 2
