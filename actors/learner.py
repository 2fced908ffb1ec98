"""The PPO learner: what each Ray Train worker runs.

    draw prompts -> rollout workers (ids, log-probs) --+--> reward service (verdicts) --+--> advantages -> PPO epochs
                                                       +--> policy, reference, critic --+          |
                      ^                                                                            v
                      +------------------------- new policy version <---------- adapter folder, checkpoint

The learner waits for the rollouts; rewards are asked for while the three passes without gradients run. Rank 0 publishes
versions, writes checkpoints and logs; the other ranks wait for it where it matters (`LearnerGroup.barrier`).
"""

import logging
import math
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import fsspec
import ray
import ray.train
import torch
from PIL.Image import Image
from ray.actor import ActorHandle
from ray.train import Checkpoint

from actors.rewarder import Rewarder, Verdicts
from actors.rollout import PolicyVersion, Rollout, RolloutRequest, sample
from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.images import decode_image
from fgaif_ray.models.backbone import load_backbone
from fgaif_ray.models.policy import PolicyModel
from fgaif_ray.rl.checkpoint import LearnerState
from fgaif_ray.rl.group import LearnerGroup
from fgaif_ray.rl.guards import GuardConfig, TrainingGuards, TrainingStopped
from fgaif_ray.rl.kl import AdaptiveKLController, FixedKLController, KLController
from fgaif_ray.rl.plan import Draw, PromptPlan
from fgaif_ray.rl.rewards import RewardOptions
from fgaif_ray.rl.run_log import RunLog
from fgaif_ray.rl.step import Estimates, PPOUpdater, estimate, prepare
from fgaif_ray.rl.trajectories import RewardUnavailableError, Trajectory, TrajectoryBatch, collate, reward_trajectory
from fgaif_ray.rl.watch import trajectory_metrics, watched_by_guards

logger = logging.getLogger(__name__)

ADAPTERS_FOLDER: Final = "adapters"
KEPT_VERSIONS: Final = 2
LOGGED_SAMPLES: Final = 4
ESTIMATE_FACTOR: Final = 4
"""Rows of a pass without gradients, as a multiple of ``ppo.micro_batch_size``."""


@dataclass(frozen=True, slots=True)
class LearnerTask:
    """What the driver gives the learner workers."""

    config: Config
    images: tuple[str, ...]
    folder: str
    """Where adapters and logs go: the stage's partial folder."""
    critic_from: str | None
    reward_app: str
    rollout_workers: tuple[ActorHandle[Any], ...]
    own_prompts: Mapping[str, Sequence[str]] | None = None
    """Prompts of each image, where the source has them."""


def train(settings: dict[str, Any]) -> dict[str, Any]:
    """Ray Train's loop function.

    Returns:
        ``{"steps": updates done, "stopped": None or why the run was ended before its last step}``. What going on cannot
        repair ends the run this way; anything else raises, and Ray Train goes on from the last checkpoint.
    """
    try:
        learner = Learner(settings["task"])
    except UserError as error:  # about the models: the same on every rank, and at the next try
        return {"steps": 0, "stopped": str(error)}
    try:
        learner.run()
    except (TrainingStopped, RewardUnavailableError) as error:  # every rank comes to the same end
        return {"steps": learner.step, "stopped": str(error)}
    finally:
        learner.close()
    return {"steps": learner.step, "stopped": None}


class Learner:
    """One learner process; `step` is the number of updates that the policy has gone through."""

    def __init__(self, task: LearnerTask) -> None:
        config = task.config
        align = config.align
        if align.threads is not None:
            torch.set_num_threads(align.threads)
        self._task, self._config, self._align = task, config, align
        backbone = load_backbone(config.policy.model, config.policy.dtype)
        if ray.get_gpu_ids():
            backbone.model.to("cuda")
        self._group = LearnerGroup(backbone.device)
        self._model = PolicyModel(
            backbone,
            align.lora,
            critic_from=task.critic_from,
            temperature=align.rollout.temperature,
            seed=config.run.seed,
        )
        self._state = LearnerState(
            self._model,
            PPOUpdater(self._model, align.ppo, self._group),
            _kl_controller(config),
            TrainingGuards(GuardConfig()),
        )
        self.step = self._restore()
        self._plan = PromptPlan(task.images, config.data.prompts, config.run.seed, task.own_prompts)
        self._options = RewardOptions(
            weights=dict(align.reward.weights),
            value=align.reward.value,
            granularity=align.reward.granularity,
            normalise_by_segments=align.reward.normalise_by_segments,
            missing_eos_penalty=align.reward.missing_eos_penalty,
        )
        self._rewarder = Rewarder(task.reward_app, config.serve.request_timeout_s, config.serve.max_batch_size)
        self._asking = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rewards")
        self._log = RunLog(task.folder, self.step + 1) if self._group.rank == 0 else None
        self._timings: dict[str, float] = {}
        # Versions of an interrupted run may still be in the engines: a new process uses names of its own.
        self._attempt = int(self._group.sum(torch.tensor(uuid.uuid4().int % (1 << 31) if self._group.rank == 0 else 0)))

    def run(self) -> None:
        """All steps that are left.

        Raises:
            TrainingStopped: a guard fired, or the rollout engine does not sample what the learner trains.
            RewardUnavailableError: rewards are missing and `align.reward.failure` does not let the run go on.
            UserError: none of a step's images can be read.
        """
        self._clear_versions()
        version = self._publish()
        while self.step < self._align.steps:
            self._timings = {}
            with self._timed("step"):
                metrics = self._one_step(version)
                self.step += 1
                version = self._publish()
            merged = self._group.merge(metrics | {f"timing/{name}": seconds for name, seconds in self._timings.items()})
            if self._log is not None:
                self._log.write_metrics(self.step, merged)
            self._state.guards.check(watched_by_guards(merged))
            if math.isfinite(merged["kl/per_response"]):
                self._state.kl_controller.update(merged["kl/per_response"], self._align.rollout_batch_size)
            if self.step % self._align.checkpoint_every == 0 or self.step == self._align.steps:
                self._checkpoint()
        if self._group.rank == 0:
            self._export()

    def close(self) -> None:
        """Release threads and files."""
        self._asking.shutdown(wait=False, cancel_futures=True)
        if self._log is not None:
            self._log.close()

    def _one_step(self, version: PolicyVersion) -> dict[str, float]:
        ppo = self._align.ppo
        draws, images, unreadable = self._draw()
        with self._timed("rollout"):
            rollouts = self._sample(draws, images, version)
        asked = self._ask_rewards(draws, images, rollouts)
        with self._timed("reference"):
            prompts = [draw.prompt for draw in draws]
            rows = self._model.encode(prompts, [image for _, image in images], [one.token_ids for one in rollouts])
            estimates = estimate(self._model, rows, ppo.micro_batch_size * ESTIMATE_FACTOR)
        verdicts, self._timings["reward"] = asked.result()
        trajectories = self._trajectories(draws, rollouts, verdicts)
        batch = self._collate(trajectories)
        self._check_engine(estimates, batch, version)
        with self._timed("update"):
            beta = self._state.kl_controller.beta
            experience = prepare(rows, batch, estimates, ppo, self._align.kl, beta, self._group)
            updates = self._state.updater.update(
                experience,
                self.step,
                self._plan.generator(self.step, self._group.rank),
                math.ceil(self._align.rollout_batch_size / ppo.minibatch_size),
            )
        if self._log is not None and (
            self.step % self._align.log_samples_every == 0 or self.step + 1 == self._align.steps
        ):
            self._log.write_samples(self.step + 1, trajectories[:LOGGED_SAMPLES])
        own = {"kl/coefficient": beta, "rollout/policy_version": float(version.number), "count/unreadable": unreadable}
        return trajectory_metrics(trajectories) | experience.metrics | updates | own

    def _draw(self) -> tuple[list[Draw], list[tuple[bytes, Image]], float]:
        """This rank's share of the step's draws with their images, and how many were left out: not readable."""
        share = self._plan.draw(self.step, self._align.rollout_batch_size)[self._group.rank :: self._group.size]
        opened: dict[str, tuple[bytes, Image]] = {}
        for path in {draw.image: None for draw in share}:
            try:
                data = storage.read_bytes(path)
                opened[path] = data, decode_image(data)
            except (OSError, ValueError) as error:
                logger.warning("left out %s: %s", path, error)
        draws = [draw for draw in share if draw.image in opened]
        if not draws:
            raise UserError(f"None of the images of PPO step {self.step + 1} can be read, {share[0].image} for one.")
        return draws, [opened[draw.image] for draw in draws], float(len(share) - len(draws))

    def _sample(
        self, draws: Sequence[Draw], images: Sequence[tuple[bytes, Image]], version: PolicyVersion
    ) -> list[Rollout]:
        backbone = self._model.backbone
        requests = [
            RolloutRequest(tuple(backbone.prompt_ids(draw.prompt)), data, draw.seed)
            for draw, (data, _) in zip(draws, images, strict=True)
        ]
        return sample(self._task.rollout_workers, requests, version)

    def _ask_rewards(
        self, draws: Sequence[Draw], images: Sequence[tuple[bytes, Image]], rollouts: Sequence[Rollout]
    ) -> "Future[tuple[list[Verdicts], float]]":
        items = [
            {"image": data, "prompt": draw.prompt, "response": None, "response_token_ids": list(rollout.token_ids)}
            for draw, (data, _), rollout in zip(draws, images, rollouts, strict=True)
        ]

        def ask() -> tuple[list[Verdicts], float]:
            started = time.monotonic()
            return self._rewarder.score(items), time.monotonic() - started

        return self._asking.submit(ask)

    def _trajectories(
        self, draws: Sequence[Draw], rollouts: Sequence[Rollout], verdicts: Sequence[Verdicts]
    ) -> list[Trajectory]:
        trajectories = []
        for draw, rollout, verdict in zip(draws, rollouts, verdicts, strict=True):
            trajectory = Trajectory(
                sample_id=draw.sample_id,
                image=draw.image,
                prompt=draw.prompt,
                token_ids=rollout.token_ids,
                behaviour_log_probs=rollout.log_probs,
                finish_reason=rollout.finish_reason,
                policy_version=rollout.policy_version,
                response=verdict.response,
                segment_spans=verdict.spans,
                token_ends=verdict.token_ends,
                reward_failure=verdict.failure,
            )
            if verdict.probabilities is not None:
                trajectory = reward_trajectory(trajectory, verdict.probabilities, self._options)
            trajectories.append(trajectory)
        return trajectories

    def _collate(self, trajectories: Sequence[Trajectory]) -> TrajectoryBatch:
        """The batch, rows without reward kept but masked out of all that is learnt: their place holds the estimates'.

        Raises:
            RewardUnavailableError: on every rank, where any may not go on.
        """
        missing = [one for one in trajectories if not one.rewarded]
        counts = self._group.sum(torch.tensor([len(missing), len(trajectories)]))
        lost, asked = int(counts[0]), int(counts[1])
        failure = self._align.reward.failure
        if (failure == "fail" and lost) or (failure == "drop" and lost == asked):
            reason = missing[0].reward_failure if missing else "see the log of another learner worker"
            raise RewardUnavailableError(
                f"missing rewards: {lost} of {asked} responses of step {self.step + 1} have none: {reason}"
            )
        return collate(trajectories, self._model.backbone.eos_token_id, "mask").to(self._model.device)

    def _check_engine(self, estimates: Estimates, batch: TrajectoryBatch, version: PolicyVersion) -> None:
        """The probe: on the tokens it sampled, the engine's log-probabilities must be the learner's."""
        difference = (estimates.log_probs - batch.behaviour_log_probs).abs()[batch.response_mask].double().mean()
        worst = float(self._group.gather(difference).max())
        tolerance = self._align.rollout.log_prob_tolerance
        if not worst <= tolerance:
            raise TrainingStopped(
                f"log-probability mismatch: on the tokens of policy version {version.number} the rollout engine and "
                f"the learner differ by {worst:.3g} on average, more than align.rollout.log_prob_tolerance "
                f"{tolerance:g}; give both the same dtype, or raise the tolerance where their kernels differ"
            )

    def _publish(self) -> PolicyVersion:
        """Writes the policy as the version of this step, whole or not at all, and has the rollout workers load it."""
        with self._timed("sync"):
            version = PolicyVersion(self.step, self._version_folder(self.step))
            if self._group.rank == 0:
                with _written_whole(version.folder) as local:
                    self._model.save_policy(local)
                remove_folder(self._version_folder(self.step - KEPT_VERSIONS))
            self._group.barrier()
            if self._group.rank == 0:
                ray.get([worker.serve.remote(version) for worker in self._task.rollout_workers])
        return version

    def _version_folder(self, number: int) -> str:
        return storage.join(self._task.folder, ADAPTERS_FOLDER, f"v{number}-{self._attempt:08x}")

    def _clear_versions(self) -> None:
        if self._group.rank == 0:
            remove_folder(storage.join(self._task.folder, ADAPTERS_FOLDER))

    def _restore(self) -> int:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return 0
        with checkpoint.as_directory() as folder:
            return self._state.load(folder)

    def _checkpoint(self) -> None:
        with tempfile.TemporaryDirectory(prefix="fgaif-checkpoint-") as folder:
            checkpoint = None
            if self._group.rank == 0:
                self._state.save(folder, self.step)
                checkpoint = Checkpoint.from_directory(folder)
            ray.train.report({"step": self.step}, checkpoint=checkpoint)
        if self._log is not None:
            self._log.sync()

    def _export(self) -> None:
        """Puts the policy's adapter at the top of the stage folder."""
        with tempfile.TemporaryDirectory(prefix="fgaif-policy-") as folder:
            self._model.save_policy(folder)
            for path in sorted(Path(folder).iterdir()):
                storage.write_bytes(storage.join(self._task.folder, path.name), path.read_bytes())

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._timings[phase] = time.monotonic() - started


def remove_folder(uri: str) -> None:
    """Removes a folder of a local path or URI, if it is there."""
    filesystem, path = fsspec.core.url_to_fs(uri)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


@contextmanager
def _written_whole(folder: str) -> Iterator[str]:
    """A local folder to fill, which becomes ``folder`` by a rename, or by an upload where it is not local."""
    if not storage.is_local(folder):
        with tempfile.TemporaryDirectory(prefix="fgaif-adapter-") as local:
            yield local
            storage.upload_folder(local, folder)
        return
    target = Path(folder.removeprefix("file://"))
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = tempfile.mkdtemp(prefix=".", dir=target.parent)
    yield unfinished
    Path(unfinished).chmod(0o755)
    Path(unfinished).rename(target)


def _kl_controller(config: Config) -> KLController:
    kl = config.align.kl
    if kl.target is None:
        return FixedKLController(kl.coefficient)
    return AdaptiveKLController(kl.coefficient, kl.target, kl.horizon)
