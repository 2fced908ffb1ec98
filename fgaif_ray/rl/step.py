"""One step on sampled, rewarded responses, in plain torch, whatever the algorithm.

``estimate`` (no gradients: the policy before the update, the reference, the critic) -> ``prepare`` (KL penalty, the
algorithm's advantages) -> ``PPOUpdater.update`` (epochs of minibatches of micro-batches). With several learner
processes every function works on the process's own rows, and what concerns the whole batch (statistics, denominators,
gradients) is summed over them: the result is that of one process with all rows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from fgaif_ray.config import KLConfig, PPOConfig
from fgaif_ray.rl.advantages import masked_mean, statistics_over
from fgaif_ray.rl.algorithms.base import Algorithm, RewardedTokens, returns_to_go
from fgaif_ray.rl.algorithms.ppo import PPO
from fgaif_ray.rl.kl import KLEstimator, kl_estimate, penalised_rewards
from fgaif_ray.rl.losses import (
    KLStatistics,
    PolicyStatistics,
    Statistics,
    ValueStatistics,
    combine_statistics,
    entropy_loss,
    explained_variance,
    kl_loss,
    policy_loss,
    value_loss,
)
from fgaif_ray.rl.micro_batches import passes
from fgaif_ray.rl.optimiser import AdapterOptimiser
from fgaif_ray.rl.policy import EncodedRows, PolicyModel
from fgaif_ray.rl.trajectories import TrajectoryBatch
from fgaif_ray.vlm.group import LearnerGroup, WeightedMean
from fgaif_ray.vlm.schedule import learning_rate_scale

POLICY_FIGURES: Final = ("loss", "clip_share", "approximate_kl", "ratio_mean", "ratio_max")
IMPORTANCE_FIGURES: Final = ("weight_mean", "weight_max", "truncated_share")
CRITIC_FIGURES: Final = ("loss", "clip_share", "value_mean", "return_mean")


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """The models' estimates of a batch before the first update on it; all ``[batch, response_tokens]``."""

    log_probs: Tensor
    entropies: Tensor
    reference_log_probs: Tensor
    values: Tensor | None
    """None without a critic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KLTerm:
    """The KL to the reference as a term of the policy's loss."""

    reference_log_probs: Tensor
    """``[batch, response_tokens]``."""
    coefficient: float
    estimator: KLEstimator


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """A batch that is ready to be learnt from; tensors are ``[batch, response_tokens]``."""

    rows: EncodedRows
    behaviour_log_probs: Tensor
    old_log_probs: Tensor
    old_values: Tensor | None
    advantages: Tensor
    returns: Tensor | None
    """None without a critic, like ``old_values``."""
    mask: Tensor
    """Bool: tokens to learn from; false on padding and on responses without reward."""
    metrics: dict[str, float]
    """``WeightedMean`` of this process's rows, or of the whole group. ``kl/per_response`` is the sum of a response's
    per-token KL to the reference (k1), nats."""
    kl_term: KLTerm | None = None
    """None where the KL has been taken from the rewards."""


@torch.no_grad()
def estimate(model: PolicyModel, rows: EncodedRows, batch_size: int, *, batch_tokens: int | None = None) -> Estimates:
    """Run policy, reference and critic over the rows, ``batch_size`` of similar length at a time.

    Args:
        model: policy and critic.
        rows: the encoded batch.
        batch_size: rows of one pass.
        batch_tokens: tokens of one pass, padding included, in place of ``batch_size``.
    """
    shape = (len(rows), rows.response_width)
    log_probs, entropies, reference = (torch.zeros(shape, device=model.device) for _ in range(3))  # [batch, tokens]
    places = torch.arange(len(rows), device=model.device)
    chunks = [(one, rows.select(one.rows)) for one in passes(model, rows, places, batch_size, batch_tokens)]
    for one, part in chunks:
        scored = model.log_probs(part, with_entropy=True)
        assert scored.entropies is not None
        if one.counts:
            log_probs[one.rows], entropies[one.rows] = scored.log_probs, scored.entropies
    for one, part in chunks:
        scored = model.log_probs(part, "reference")
        if one.counts:
            reference[one.rows] = scored.log_probs
    values = torch.zeros(shape, device=model.device) if model.has_critic else None  # [batch, response_tokens]
    if values is not None:
        for one, part in chunks:
            expected = model.values(part)
            if one.counts:
                values[one.rows] = expected
    return Estimates(log_probs=log_probs, entropies=entropies, reference_log_probs=reference, values=values)


@torch.no_grad()
def prepare(
    rows: EncodedRows,
    batch: TrajectoryBatch,
    estimates: Estimates,
    ppo: PPOConfig,
    kl: KLConfig,
    beta: float,
    group: LearnerGroup,
    algorithm: Algorithm = PPO,
    type_weights: Sequence[float] = (),
) -> Experience:
    """Apply the KL penalty to the rewards (or keep it for the loss), then let the algorithm credit tokens.

    Args:
        rows: the encoded batch.
        batch: the same rows with their rewards, on the model's device.
        estimates: of the same rows.
        ppo: gamma, lambda and whether to whiten.
        kl: the estimator, and whether the penalty goes into the rewards or the loss.
        beta: the KL penalty's current weight.
        group: the learner processes.
        algorithm: of the advantages.
        type_weights: that the segments' rewards were weighted with; empty for 1.
    """
    mask = batch.loss_mask
    penalty = kl_estimate(estimates.log_probs, estimates.reference_log_probs, kl.estimator)
    in_loss = kl.placement == "loss"
    rewards = penalised_rewards(
        batch.token_rewards, penalty, 0.0 if in_loss else beta, mask
    )  # [batch, response_tokens]
    credited = algorithm.credit(
        RewardedTokens(
            batch=batch,
            rewards=rewards,
            mask=mask,
            values=estimates.values,
            type_weights=tuple(type_weights),
            options=ppo,
            group=group,
        )
    )
    raw = statistics_over(group, credited.raw, mask)
    drift = estimates.log_probs - estimates.reference_log_probs  # [batch, response_tokens]
    engine = (estimates.log_probs - batch.behaviour_log_probs).abs()  # [batch, response_tokens]
    response_kl = torch.where(mask, drift, torch.zeros_like(drift)).sum()
    counted = group.sum(torch.stack([response_kl, batch.sample_mask.sum().float()]))
    rewarded = int(batch.sample_mask.sum())
    metrics = {
        "kl/per_token": _token_mean(drift, mask),
        "kl/per_token_k3": _token_mean(kl_estimate(*_pair(estimates), "k3"), mask),
        "policy/entropy": _token_mean(estimates.entropies, mask),
        "kl/per_response": float(counted[0] / counted[1].clamp(min=1)),
        "rollout/log_prob_difference": _token_mean(engine, batch.response_mask),
        "rollout/log_prob_difference_max": float(engine[batch.response_mask].max()),
        "advantage/mean": raw.mean,
        "advantage/standard_deviation": math.sqrt(raw.variance),
        "reward/penalised": WeightedMean(float(rewards.sum()) / max(rewarded, 1), rewarded),
    }
    if estimates.values is not None and credited.returns is not None:
        # Against what was really paid: lambda-returns are made of the same values, and agree with any of them.
        paid = returns_to_go(torch.where(mask, rewards, torch.zeros_like(rewards)))
        errors = statistics_over(group, paid - estimates.values, mask)
        metrics["critic/explained_variance_before"] = explained_variance(errors, statistics_over(group, paid, mask))
    return Experience(
        rows=rows,
        behaviour_log_probs=batch.behaviour_log_probs,
        old_log_probs=estimates.log_probs,
        old_values=estimates.values,
        advantages=credited.advantages,
        returns=credited.returns,
        mask=mask,
        metrics=metrics,
        kl_term=KLTerm(reference_log_probs=estimates.reference_log_probs, coefficient=beta, estimator=kl.estimator)
        if in_loss
        else None,
    )


class PPOUpdater:
    """The optimiser and the update's epochs (Schulman et al. 2017; FGAIF section 3.4)."""

    def __init__(
        self,
        model: PolicyModel,
        config: PPOConfig,
        group: LearnerGroup,
        total_steps: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        """Starts with a new optimiser.

        Args:
            model: whose adapters and value head are trained.
            config: of the update.
            group: the learner processes.
            total_steps: steps of the run; needed where the learning rate falls.
            max_tokens: of a response; needed where ``loss_normalisation`` is ``constant``.

        Raises:
            ValueError: ``max_tokens`` is missing.
        """
        if config.loss_normalisation == "constant" and max_tokens is None:
            raise ValueError("loss_normalisation=constant needs the most tokens of a response")
        self._model, self._config, self._group, self._total_steps = model, config, group, total_steps
        self._max_tokens = max_tokens
        groups = {"policy": model.policy_parameters()}
        if model.has_critic:
            groups["critic"] = model.critic_parameters()
        rates = {"policy": config.learning_rate, "critic": config.critic_learning_rate}
        self._optimiser = AdapterOptimiser(groups, rates, config.max_grad_norm, group)

    def update(
        self, experience: Experience, step: int, generator: torch.Generator, minibatches: int
    ) -> dict[str, float]:
        """Learn from one rollout batch.

        Args:
            experience: from ``prepare``.
            step: 0 for the first rollout batch of the run; decides the learning rate (see ``schedule``).
            generator: decides the order of rows; equal in a resumed run.
            minibatches: optimiser steps per epoch, the same for every process of the group.

        Returns:
            Metrics, a ``WeightedMean`` of this process's tokens. ``update/skipped`` counts optimiser steps left out
            because a gradient was not finite, ``update/stopped_early`` is 1 where ``target_kl`` has ended the epochs.
        """
        scale = learning_rate_scale(
            step,
            schedule=self._config.schedule,
            warmup_steps=self._config.warmup_steps,
            total_steps=self._total_steps,
        )
        self._optimiser.scale_rates(scale)
        statistics = _Statistics(self._model.has_critic)
        skipped, norms = 0, []
        critic_alone = self._model.has_critic and step < self._config.critic_warmup_steps
        learning = ["critic"] if critic_alone else self._optimiser.groups
        learnt = experience.mask.any(dim=1).nonzero().squeeze(1)  # [rows]; rows without reward cost no pass
        minibatch_rows = (
            learnt[places]
            for _ in range(self._config.epochs)
            for places in torch.tensor_split(
                torch.randperm(len(learnt), generator=generator).to(learnt.device), minibatches
            )
        )
        stopped = False
        for rows in minibatch_rows:
            first = len(statistics.policy)
            if not self._accumulate(experience, rows, statistics, critic_alone):
                continue
            stopped = self._moved_too_far(statistics.policy[first:])
            if stopped:
                self._optimiser.drop_gradients()
                break
            norm = self._optimiser.step(learning)
            skipped += norm is None
            norms += [norm] if norm is not None else []
        mean_norms = {
            f"update/{name}_gradient_norm": sum(norm[name] for norm in norms) / len(norms)
            if norms and name in learning
            else math.nan
            for name in self._optimiser.groups
        }
        done = {
            "update/skipped": float(skipped),
            "update/learning_rate_scale": scale,
            "update/stopped_early": float(stopped),
        }
        if experience.kl_term is not None:
            done["kl/loss"] = statistics.kl_metric()
        return statistics.metrics() | mean_norms | done

    def state_dict(self) -> dict[str, Tensor]:
        """The optimiser's tensors by parameter name."""
        return self._optimiser.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a ``state_dict``."""
        self._optimiser.load_state_dict(state)

    def _moved_too_far(self, policy: Sequence[PolicyStatistics]) -> bool:
        """Whether the policy is further from the one before the update than ``target_kl``, over the whole group."""
        if self._config.target_kl is None:
            return False
        known = [one for one in policy if one.tokens]
        own = [sum(one.approximate_kl * one.tokens for one in known), float(sum(one.tokens for one in known))]
        total, tokens = self._group.sum(torch.tensor(own)).tolist()
        return bool(tokens > 0 and total / tokens > self._config.target_kl)

    def _share_of_loss(self, mask: Tensor, tokens: Tensor, responses: Tensor) -> Tensor:
        """What ``loss_normalisation`` multiplies a response's advantages with, ``[rows, 1]``; the loss is a token mean.

        Args:
            mask: ``[rows, response_tokens]`` of the responses.
            tokens: of the minibatch, over the whole group.
            responses: likewise.
        """
        if self._config.loss_normalisation == "sequence":
            return tokens / responses / mask.sum(1, keepdim=True).clamp(min=1)
        if self._config.loss_normalisation == "constant":
            assert self._max_tokens is not None
            return (tokens / (responses * self._max_tokens)).expand(len(mask), 1)
        return torch.ones(len(mask), 1, device=mask.device)

    def _accumulate(
        self, experience: Experience, indices: Tensor, statistics: "_Statistics", critic_alone: bool
    ) -> bool:
        """Add up the gradients of one minibatch; false if the group has nothing to learn from."""
        config, model = self._config, self._model
        counted = torch.stack([experience.mask[indices].sum(), experience.mask[indices].any(1).sum()]).float()
        tokens, responses = self._group.sum(counted)  # of the whole group
        if not tokens > 0:
            return False
        rows = experience.rows
        for one in passes(model, rows, indices, config.micro_batch_size, config.micro_batch_tokens):
            part, at = rows.select(one.rows), one.rows
            mask = experience.mask[at] & one.counts
            if critic_alone:
                self._accumulate_critic(experience, part, at, mask, tokens, statistics)
                continue
            scored = model.log_probs(part, with_entropy=config.entropy_coefficient > 0)
            loss, policy = policy_loss(
                scored.log_probs,
                experience.old_log_probs[at],
                experience.advantages[at] * self._share_of_loss(mask, tokens, responses),
                mask,
                clip_range=config.clip,
                clip_high=config.clip_high,
                ratio_level=config.ratio,
                behaviour_log_probs=experience.behaviour_log_probs[at],
                importance_cap=config.importance_cap,
                denominator=tokens,
            )
            statistics.policy.append(policy)
            if (term := experience.kl_term) is not None:
                divergence, kl = kl_loss(
                    scored.log_probs,
                    term.reference_log_probs[at],
                    experience.behaviour_log_probs[at],
                    mask,
                    estimator=term.estimator,
                    importance_cap=config.importance_cap,
                    denominator=tokens,
                )
                statistics.kl.append(kl)
                loss = loss + term.coefficient * divergence
            if scored.entropies is not None:
                loss = loss + config.entropy_coefficient * entropy_loss(scored.entropies, mask, denominator=tokens)[0]
            loss.backward()
            # The adapters take turns: the critic's pass may begin only when the policy's gradients are there.
            self._accumulate_critic(experience, part, at, mask, tokens, statistics)
        return True

    def _accumulate_critic(
        self,
        experience: Experience,
        part: EncodedRows,
        at: Tensor,
        mask: Tensor,
        tokens: Tensor,
        statistics: "_Statistics",
    ) -> None:
        """Add the critic's gradients of one pass, if there is a critic."""
        if experience.old_values is None or experience.returns is None:
            return
        loss, value = value_loss(
            self._model.values(part),
            experience.old_values[at],
            experience.returns[at],
            mask,
            clip_range=self._config.value_clip,
            denominator=tokens,
        )
        statistics.value.append(value)
        (self._config.value_coefficient * loss).backward()


class _Statistics:
    """Statistics gathered over micro-batches."""

    def __init__(self, has_critic: bool) -> None:
        self.has_critic = has_critic
        self.policy: list[PolicyStatistics] = []
        self.value: list[ValueStatistics] = []
        self.kl: list[KLStatistics] = []

    def kl_metric(self) -> WeightedMean:
        """Of the loss's KL term over all micro-batches, nats per token; NaN where there was none."""
        return _token_means(self.kl, {"kl": "kl"})["kl"]

    def metrics(self) -> dict[str, float]:
        """Token means over all micro-batches; NaN where there was none."""
        policy = {f"policy/{name}": name for name in POLICY_FIGURES}
        policy |= {f"importance/{name}": f"importance_{name}" for name in IMPORTANCE_FIGURES}
        critic = {f"critic/{name}": name for name in CRITIC_FIGURES} if self.has_critic else {}
        return {**_token_means(self.policy, policy), **_token_means(self.value, critic)}


def _token_mean(values: Tensor, mask: Tensor) -> WeightedMean:
    return WeightedMean(float(masked_mean(values, mask)), int(mask.sum()))


def _token_means(parts: Sequence[Statistics], names: Mapping[str, str]) -> dict[str, WeightedMean]:
    """Metrics of the micro-batches together, by the names of their fields; NaN without any."""
    whole = combine_statistics(parts) if parts else None
    tokens = 0 if whole is None else whole.tokens
    return {metric: WeightedMean(getattr(whole, field, math.nan), tokens) for metric, field in names.items()}


def _pair(estimates: Estimates) -> tuple[Tensor, Tensor]:
    return estimates.log_probs, estimates.reference_log_probs
