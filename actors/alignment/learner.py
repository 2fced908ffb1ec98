"""The PPO learner, which each Ray Train worker runs.

    draw prompts -> rollout workers (ids, log-probs) --+--> reward service (verdicts) --+--> advantages -> PPO epochs
                                                       +--> policy, reference, critic --+          |
                      ^                                                                            v
                      +------------------------- new policy version <---------- adapter folder, checkpoint

With `align.rollout.max_staleness: 0` the learner waits for the rollouts; rewards are asked for while the three passes
without gradients run. With 1 it is one batch ahead: while it learns from the batch of step s and makes policy s + 1,
the batch of step s + 1 is sampled from policy s and scored. That batch's log-probabilities are checked against policy
s, which is kept, also in checkpoints: a resumed run samples the same batch from the same policy.

When a machine is about to be taken away (a spot notice), a checkpoint is written after every step, and before the
update of one that is being sampled.

Rank 0 publishes versions, writes checkpoints and logs; the other ranks wait for it where it matters
(`LearnerGroup.barrier`).
"""

import math
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Final

import ray
import torch
from torch import Tensor

from actors.alignment import metrics as ppo_metrics
from actors.alignment.experience import ExperienceSource, Sampled
from actors.alignment.held_out import HeldOut
from actors.alignment.policy_versions import PolicyVersions
from actors.alignment.process import LearnerProcess
from actors.alignment.rewarder import Rewarder, TypeVerdicts
from actors.alignment.rollout import PolicyVersion
from actors.alignment.self_check import check_prompts, self_check
from actors.alignment.tasks import LearnerTask
from actors.cluster.device import worker_device
from fgaif_ray.blind import SCOPES, blindfold
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.rewards.scale import RunningScale, moments
from fgaif_ray.rl.algorithms import ALGORITHMS
from fgaif_ray.rl.checkpoint import LearnerState
from fgaif_ray.rl.guards import TrainingGuards, TrainingStopped
from fgaif_ray.rl.held_out import BestPolicy
from fgaif_ray.rl.kept_policy import KeptPolicy
from fgaif_ray.rl.kl import AdaptiveKLController, FixedKLController, KLController
from fgaif_ray.rl.micro_batches import ESTIMATE_FACTOR
from fgaif_ray.rl.plan import Draw, PromptPlan, share_of
from fgaif_ray.rl.policy import EncodedRows, PolicyModel
from fgaif_ray.rl.staleness import policy_log_probs
from fgaif_ray.rl.step import Estimates, PPOUpdater, estimate, prepare
from fgaif_ray.rl.trajectories import RewardUnavailableError, Trajectory, TrajectoryBatch, collate
from fgaif_ray.rl.watch import busy_share, trajectory_metrics, watched_by_guards
from fgaif_ray.vlm.backbone import load_backbone
from fgaif_ray.vlm.group import LearnerGroup, WeightedMean

LOGGED_SAMPLES: Final = 4
SAMPLES_LOGGED_EVERY: Final = 10
"""Steps; those of the last one are always logged."""
PROBES: Final = 2
"""Responses of each worker that the self-check looks at."""
PROBE_ROWS: Final = 16
"""Responses of each worker that a stale batch is checked with; a fresh one is checked as a whole, for nothing."""


def train(task: LearnerTask) -> dict[str, Any]:
    """Learn to the last step, in a worker of Ray Train.

    Returns:
        ``{"steps": updates done, "stopped": None or why the run was ended before its last step, "best": None or step
        and metric of the policy that is published in place of the last}``. What cannot be repaired by going on ends the
        run this way; other errors are raised, and Ray Train resumes from the checkpoint.
    """
    try:
        learner = Learner(task)
    except UserError as error:  # about models or trackers: on every rank, and the same at the next try
        return {"steps": 0, "stopped": str(error)}
    try:
        learner.run()
    except (TrainingStopped, RewardUnavailableError) as error:  # every rank comes to the same end
        learner.record_stop(str(error))
        return {"steps": learner.step, "stopped": str(error)}
    finally:
        learner.close()
    return {"steps": learner.step, "stopped": None, "best": learner.best}


class Learner(LearnerProcess[PPOUpdater]):
    """A process that learns from rollouts."""

    def __init__(self, task: LearnerTask) -> None:
        config = task.config
        align = config.align
        if align.threads is not None:
            torch.set_num_threads(align.threads)
        self._task = task
        self._algorithm = ALGORITHMS[align.algorithm]
        backbone = load_backbone(config.policy.model, config.policy.dtype, template=config.data.chat_template_kwargs)
        group = LearnerGroup(worker_device())
        if align.sharding == "none":
            backbone.move_to(group.device)
        self._model = PolicyModel(
            backbone,
            align.lora,
            critic=self._algorithm.has_critic,
            critic_from=task.critic_from,
            temperature=align.rollout.temperature,
            seed=config.run.seed,
            activation_checkpointing=align.activation_checkpointing,
            sharded_over=group if align.sharding == "full" else None,
        )
        self._previous = KeptPolicy(self._model) if align.rollout.max_staleness else None
        state = LearnerState(
            self._model,
            PPOUpdater(self._model, align.ppo, group, align.steps, align.rollout.max_tokens),
            _kl_controller(config),
            TrainingGuards(align.guards),
            self._previous,
            _reward_scale(config),
            _best_policy(config, self._model),
        )
        self._options = RewardOptions(**align.reward.of_response)
        super().__init__(config, task.folder, group, state, self._options.types)
        self._plan = PromptPlan(task.images, config.data.prompts, config.run.seed, task.own_prompts)
        rewarder = Rewarder(
            task.reward_app, config.serve.request_timeout_s, config.serve.max_batch_size, self._options.types
        )
        seen, judged = (blindfold(config, scope, task.images).shown for scope in SCOPES)
        self._source = ExperienceSource(
            backbone.front_end, task.rollout_workers, rewarder, config.data.pixel_budget, seen, judged
        )
        own_draws = share_of(task.evaluation, group.rank, group.size)
        self._held_out = HeldOut(self._source, own_draws, task.truth, self._options, backbone.front_end)
        self._busy: list[tuple[float, float]] = []
        # Versions of an interrupted run may still be in the engines: a new process uses names of its own.
        own = torch.tensor(uuid.uuid4().int % (1 << 31) if self._group.rank == 0 else 0)
        self._versions = PolicyVersions(task.folder, int(self._group.sum(own)))

    def run(self) -> None:
        """Run all remaining steps.

        Raises:
            TrainingStopped: a guard fired, or the rollout engine does not sample what the learner trains.
            RewardUnavailableError: rewards are missing and `align.reward.failure` does not let the run go on.
            UserError: none of a step's images can be read.
        """
        if self._group.rank == 0:
            self._versions.clear()
        if self.step < self._align.steps:
            tolerance = self._align.rollout.log_prob_tolerance
            some = self._draws(self.step)[:: self._align.samples_per_prompt][:PROBES]
            self_check(self._model, self._source, self._versions, some, tolerance, self._group)
        pending, pending_since = self._resumed_batch(), time.monotonic()
        newest = self._publish()
        if self.step == 0 and self._align.evaluate_every is not None:
            self._evaluate_first(newest)
        while self.step < self._align.steps:
            self._timings, self._busy = {}, []
            began = time.monotonic()
            sampled = self._wait(pending if pending is not None else self._start(self.step, newest))
            pending = None
            self._heed_notice()  # sampling takes longest, and has changed nothing that a checkpoint holds
            if self._previous is not None and self.step + 1 < self._align.steps:
                pending, pending_since = self._start(self.step + 1, newest), time.monotonic()
            metrics = self._one_step(sampled)
            self.step += 1
            newest = self._publish()
            ended = time.monotonic()
            if pending is not None:
                self._busy.append((pending_since, _sampled_until(pending, ended)))
            self._timings["step"] = ended - began
            metrics["goodput/step_share"] = busy_share(self._busy, began, ended)
            evaluated = self._evaluate(newest)
            metrics |= evaluated
            merged = self._group.merge(metrics | {f"timing/{name}": seconds for name, seconds in self._timings.items()})
            merged["goodput/tokens_per_second"] = merged["count/tokens"] / merged["timing/step"]
            if self._log is not None:
                self._log.write_metrics(self.step, merged)
                ppo_metrics.record_step(self.step, self._align.steps, merged)
            if evaluated and self._state.best is not None:
                self._state.best.consider(self.step, merged)
            self._check_guards(merged)
            if math.isfinite(merged["kl/per_response"]):
                self._state.kl_controller.update(merged["kl/per_response"], self._align.rollout_batch_size)
            self._save_if_due()
        if self._group.rank == 0:
            self._export()

    def close(self) -> None:
        """Release threads and files."""
        self._source.close()
        super().close()

    @property
    def best(self) -> dict[str, Any] | None:
        """Step and metric of the policy that is published as the best; None where that is the last one."""
        best = self._state.best
        if best is None or best.step is None:
            return None
        return {"step": best.step, "metric": self._align.best_by, "value": best.value}

    def _evaluate(self, version: PolicyVersion) -> dict[str, float]:
        """This process's part of the evaluation that is due after a step; nothing where none is."""
        every = self._align.evaluate_every
        if every is None or (self.step % every and self.step < self._align.steps):
            return {}
        with self._timed("evaluate"):
            return dict(self._held_out.measure(version))

    def _evaluate_first(self, version: PolicyVersion) -> None:
        """Evaluate the policy before the first step, and log it as that of step 0."""
        with self._timed("evaluate"):
            own: dict[str, float] = dict(self._held_out.measure(version))
        merged = self._group.merge(own | {"timing/evaluate": self._timings["evaluate"]})
        if self._state.best is not None:
            self._state.best.consider(0, merged)
        if self._log is not None:
            self._log.write_metrics(0, merged)

    def _check_guards(self, merged: dict[str, float]) -> None:
        try:
            self._state.guards.check(watched_by_guards(merged))
        finally:
            if self._group.rank == 0:
                ppo_metrics.record_guards(self._state.guards.state_dict()["streaks"])

    def _start(self, step: int, version: PolicyVersion) -> "Future[Sampled]":
        """Begin to sample this rank's share of a step."""
        own = self._draws(step)
        # Ahead, loading a version waits for the sampling before it: in the background, by one rank for all.
        return self._source.start(own, version, sync=self._previous is not None and self._group.rank == 0)

    def _draws(self, step: int) -> list[Draw]:
        """This rank's share of the images and prompts of a step."""
        align = self._align
        draws = self._plan.draw(step, align.rollout_batch_size, align.samples_per_prompt)
        return share_of(draws, self._group.rank, self._group.size, align.samples_per_prompt)

    def _resumed_batch(self) -> "Future[Sampled] | None":
        """Begin again the batch that was being sampled ahead when the checkpoint was written."""
        if self._previous is None or not self._previous.is_kept or self.step >= self._align.steps:
            return None
        with self._previous.restored():
            version = self._write(self.step - 1)
        return self._start(self.step, version)

    def _wait(self, pending: "Future[Sampled]") -> Sampled:
        with self._timed("wait"):
            sampled = pending.result()
        self._timings["rollout"] = sampled.ended - sampled.began
        self._busy.append((sampled.began, sampled.ended))
        return sampled

    def _one_step(self, sampled: Sampled) -> dict[str, float]:
        align, ppo, draws = self._align, self._align.ppo, sampled.draws
        with self._timed("reference"):
            rows = self._model.encode(
                [draw.prompt for draw in draws], sampled.images, [one.token_ids for one in sampled.rollouts]
            )
            check_prompts(self._model.backbone.path, draws, sampled.rollouts, rows, self._group)
            size, tokens = self._estimate_size
            estimates = estimate(self._model, rows, size, batch_tokens=tokens)
        verdicts, self._timings["reward"] = sampled.verdicts.result()
        options, scale = self._scaled(verdicts)
        trajectories = sampled.trajectories(verdicts, options)
        batch = self._collate(trajectories)
        probed = self._check_engine(rows, estimates, batch, sampled.version)
        with self._timed("update"):
            began = time.monotonic()
            beta = self._state.kl_controller.beta
            weights = tuple(self._options.weights.values())
            experience = prepare(rows, batch, estimates, ppo, align.kl, beta, self._group, self._algorithm, weights)
            if self._previous is not None:
                self._previous.keep()
            updates = self._state.updater.update(
                experience,
                self.step,
                self._plan.generator(self.step, self._group.rank),
                math.ceil(align.rollout_batch_size / ppo.minibatch_size),
            )
            self._busy.append((began, time.monotonic()))
        if self._log is not None and (self.step % SAMPLES_LOGGED_EVERY == 0 or self.step + 1 == align.steps):
            self._log.write_samples(self.step + 1, trajectories[:: align.samples_per_prompt][:LOGGED_SAMPLES])
        own = {
            "kl/coefficient": beta,
            "rollout/policy_version": float(sampled.version.number),
            "rollout/staleness": WeightedMean(self.step - float(batch.policy_versions.double().mean()), len(batch)),
            "count/unreadable": float(sampled.unreadable),
        }
        self._timings["sync"] = sampled.sync_seconds
        measured = trajectory_metrics(trajectories, self._options.types)
        return measured | experience.metrics | probed | updates | own | scale

    def _scaled(self, verdicts: Sequence[TypeVerdicts]) -> tuple[RewardOptions, dict[str, float]]:
        """The options of this step's rewards, the same in all processes, and the types' factors as metrics."""
        scale = self._state.reward_scale
        if scale is None:
            return self._options, {}
        known = [one.probabilities for one in verdicts if one.probabilities is not None]
        facts = [one.facts for one in verdicts if one.facts is not None]
        scale.add(moments(known, self._options, facts), self._group)
        factors = {f"reward_scale/{name}": factor for name, factor in scale.factors().items()}
        return replace(self._options, weights=scale.weights(self._options.weights)), factors

    @property
    def _estimate_size(self) -> tuple[int, int | None]:
        """Rows of a pass without gradients, and the tokens that take their place where they are set."""
        ppo = self._align.ppo
        tokens = ppo.micro_batch_tokens
        return ppo.micro_batch_size * ESTIMATE_FACTOR, None if tokens is None else tokens * ESTIMATE_FACTOR

    def _collate(self, trajectories: Sequence[Trajectory]) -> TrajectoryBatch:
        """The batch, rows without reward kept but masked out of all that is learnt: their place holds the estimates'.

        Raises:
            RewardUnavailableError: on every rank, where any may not go on.
        """
        missing = [one for one in trajectories if not one.rewarded]
        counts = self._group.sum(torch.tensor([len(missing), len(trajectories)]))
        lost, asked = int(counts[0]), int(counts[1])
        if lost and self._align.reward.failure == "fail":
            reason = missing[0].reward_failure if missing else "see the log of another learner worker"
            raise RewardUnavailableError(
                f"missing rewards: {lost} of {asked} responses of step {self.step + 1} have none: {reason}"
            )
        batch = collate(trajectories, self._model.backbone.eos_token_id).to(self._model.device)
        return batch.without_truncated() if self._align.reward.truncated == "mask" else batch

    def _check_engine(
        self, rows: EncodedRows, estimates: Estimates, batch: TrajectoryBatch, version: PolicyVersion
    ) -> dict[str, float]:
        """The probe: on the tokens it sampled, the engine's log-probabilities must be those of the same policy here.

        Returns:
            Metrics in place of those that compare with the newest policy, where another one has sampled.
        """
        probed: dict[str, float] = {}
        if version.number == self.step:
            difference = (estimates.log_probs - batch.behaviour_log_probs).abs()[batch.response_mask]
        else:
            difference = self._probe_previous(rows, batch)
            probed["rollout/log_prob_difference"] = WeightedMean(float(difference.mean()), len(difference))
            probed["rollout/log_prob_difference_max"] = float(difference.max())
        worst = float(self._group.gather(difference.double().mean()).max())
        tolerance = self._align.rollout.log_prob_tolerance
        if not worst <= tolerance:
            raise TrainingStopped(
                f"log-probability mismatch: on the tokens of policy version {version.number} the rollout engine and "
                f"the learner differ by {worst:.3g} on average, more than align.rollout.log_prob_tolerance "
                f"{tolerance:g}; give both the same dtype, or raise the tolerance where their kernels differ"
            )
        return probed

    def _probe_previous(self, rows: EncodedRows, batch: TrajectoryBatch) -> Tensor:
        """``[tokens]`` differences between the engine and the policy before the last update, on some responses."""
        assert self._previous is not None
        some = torch.arange(min(len(rows), PROBE_ROWS), device=self._model.device)
        with self._timed("probe"), self._previous.restored():
            log_probs = policy_log_probs(self._model, rows.select(some), *self._estimate_size)
        return (log_probs - batch.behaviour_log_probs[some]).abs()[batch.response_mask[some]]

    def _publish(self) -> PolicyVersion:
        """Publish the policy as the version of this step; unless sampling is ahead, the rollout workers load it."""
        began, loaded_ahead = time.monotonic(), self._timings.get("sync", 0.0)
        version = self._write(self.step)
        if self._previous is None and self._group.rank == 0:
            ray.get([worker.serve.remote(version) for worker in self._task.rollout_workers])
        self._timings["sync"] = loaded_ahead + time.monotonic() - began
        return version

    def _write(self, number: int) -> PolicyVersion:
        if self._group.rank == 0:
            self._versions.write(self._model, number)
        self._group.barrier()
        return self._versions.version(number)


def _sampled_until(pending: "Future[Sampled]", now: float) -> float:
    """Return when the sampling ahead ended, or now."""
    done = pending.done() and pending.exception() is None
    return pending.result().ended if done else now


def _reward_scale(config: Config) -> RunningScale | None:
    reward = config.align.reward
    return None if reward.scale == "none" else RunningScale(reward.scale, reward.scale_steps, config.run.type_names)


def _best_policy(config: Config, model: PolicyModel) -> BestPolicy | None:
    align = config.align
    return None if align.best_by is None else BestPolicy(KeptPolicy(model), align.best_by, align.best_min_facts_share)


def _kl_controller(config: Config) -> KLController:
    kl = config.align.kl
    if kl.target is None:
        return FixedKLController(kl.coefficient)
    return AdaptiveKLController(kl.coefficient, kl.target, kl.horizon)
