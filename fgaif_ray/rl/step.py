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
from torch import Tensor, nn

from fgaif_ray.config import KLConfig, PPOConfig
from fgaif_ray.rl.advantages import (
    masked_mean,
    masked_statistics,
)
from fgaif_ray.rl.algorithms.base import Algorithm, RewardedTokens
from fgaif_ray.rl.algorithms.ppo import PPO
from fgaif_ray.rl.kl import KLEstimator, kl_estimate, penalised_rewards
from fgaif_ray.rl.losses import (
    KLStatistics,
    PolicyStatistics,
    ValueStatistics,
    combine_statistics,
    entropy_loss,
    explained_variance,
    kl_loss,
    policy_loss,
    value_loss,
)
from fgaif_ray.rl.micro_batches import passes
from fgaif_ray.rl.policy import EncodedRows, PolicyModel
from fgaif_ray.rl.trajectories import TrajectoryBatch
from fgaif_ray.vlm.group import LearnerGroup
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
    """Of this process's rows, but ``kl/per_response``: the mean over the group's responses of the sum of their
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
    raw = masked_statistics(credited.raw, mask)
    drift = estimates.log_probs - estimates.reference_log_probs  # [batch, response_tokens]
    engine = (estimates.log_probs - batch.behaviour_log_probs).abs()  # [batch, response_tokens]
    response_kl = torch.where(mask, drift, torch.zeros_like(drift)).sum()
    counted = group.sum(torch.stack([response_kl, batch.sample_mask.sum().float()]))
    metrics = {
        "kl/per_token": float(masked_mean(drift, mask)),
        "kl/per_token_k3": float(masked_mean(kl_estimate(*_pair(estimates), "k3"), mask)),
        "policy/entropy": float(masked_mean(estimates.entropies, mask)),
        "kl/per_response": float(counted[0] / counted[1].clamp(min=1)),
        "rollout/log_prob_difference": float(masked_mean(engine, batch.response_mask)),
        "rollout/log_prob_difference_max": float(engine[batch.response_mask].max()),
        "advantage/mean": raw.mean,
        "advantage/standard_deviation": math.sqrt(raw.variance),
        "reward/penalised": float(rewards.sum() / max(int(batch.sample_mask.sum()), 1)),
    }
    if estimates.values is not None and credited.returns is not None:
        metrics["critic/explained_variance_before"] = explained_variance(estimates.values, credited.returns, mask)
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
        self, model: PolicyModel, config: PPOConfig, group: LearnerGroup, total_steps: int | None = None
    ) -> None:
        """Starts with a new optimiser.

        Args:
            model: whose adapters and value head are trained.
            config: of the update.
            group: the learner processes.
            total_steps: steps of the run; needed where the learning rate falls.
        """
        self._model, self._config, self._group, self._total_steps = model, config, group, total_steps
        self._groups = {"policy": model.policy_parameters()}
        if model.has_critic:
            self._groups["critic"] = model.critic_parameters()
        rates = {"policy": config.learning_rate, "critic": config.critic_learning_rate}
        self._optimizer = torch.optim.AdamW(
            [{"params": list(named.values()), "lr": rates[name]} for name, named in self._groups.items()],
            weight_decay=0.0,
            fused=True,
        )
        self._rates = [rates[name] for name in self._groups]

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
            Metrics of this process's rows. ``update/skipped`` counts optimiser steps left out because a gradient was
            not finite.
        """
        scale = learning_rate_scale(
            step,
            schedule=self._config.schedule,
            warmup_steps=self._config.warmup_steps,
            total_steps=self._total_steps,
        )
        for parameters, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            parameters["lr"] = rate * scale
        statistics = _Statistics(self._model.has_critic)
        skipped, norms = 0, []
        learnt = experience.mask.any(dim=1).nonzero().squeeze(1)  # [rows]; rows without reward cost no pass
        for _ in range(self._config.epochs):
            order = torch.randperm(len(learnt), generator=generator).to(learnt.device)
            for places in torch.tensor_split(order, minibatches):
                if self._accumulate(experience, learnt[places], statistics):
                    norm = self._apply()
                    skipped += norm is None
                    norms += [norm] if norm is not None else []
        mean_norms = {
            f"update/{name}_gradient_norm": sum(norm[name] for norm in norms) / len(norms) if norms else math.nan
            for name in self._groups
        }
        done = {"update/skipped": float(skipped), "update/learning_rate_scale": scale}
        if experience.kl_term is not None:
            done["kl/loss"] = statistics.mean_kl()
        return statistics.metrics() | mean_norms | done

    def state_dict(self) -> dict[str, Tensor]:
        """The optimiser's tensors by parameter name."""
        state = {}
        for named in self._groups.values():
            for name, parameter in named.items():
                for key, value in self._optimizer.state.get(parameter, {}).items():
                    state[f"{key}/{name}"] = value.detach().cpu().clone()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a ``state_dict``."""
        named = {name: value for group in self._groups.values() for name, value in group.items()}
        for entry, tensor in state.items():
            key, name = entry.split("/", 1)
            # Adam's step counters are float32 and stay on the parameters' device, as fused Adam wants them.
            self._optimizer.state[named[name]][key] = tensor.to(named[name].device)

    def _accumulate(self, experience: Experience, indices: Tensor, statistics: "_Statistics") -> bool:
        """Add up the gradients of one minibatch; false if the group has nothing to learn from."""
        config, model = self._config, self._model
        tokens = self._group.sum(experience.mask[indices].sum().float())  # of the whole group
        if not tokens > 0:
            return False
        rows = experience.rows
        for one in passes(model, rows, indices, config.micro_batch_size, config.micro_batch_tokens):
            part, at = rows.select(one.rows), one.rows
            mask = experience.mask[at] & one.counts
            scored = model.log_probs(part, with_entropy=config.entropy_coefficient > 0)
            loss, policy = policy_loss(
                scored.log_probs,
                experience.old_log_probs[at],
                experience.advantages[at],
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
            if experience.old_values is None or experience.returns is None:
                continue
            # The adapters take turns: the critic's pass may begin only when the policy's gradients are there.
            critic_loss, value = value_loss(
                model.values(part),
                experience.old_values[at],
                experience.returns[at],
                mask,
                clip_range=config.value_clip,
                denominator=tokens,
            )
            statistics.value.append(value)
            (config.value_coefficient * critic_loss).backward()
        return True

    def _apply(self) -> dict[str, float] | None:
        """Make one optimiser step on the group's gradients; returns the norms, or None if it was skipped."""
        norms = {}
        for name, parameters in self._groups.items():
            gradients = [
                parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
                for parameter in parameters.values()
            ]
            self._group.sum_all(gradients)
            for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                parameter.grad = gradient
            # Clipped apart: a large error of the critic must not shrink the policy's step.
            norm = nn.utils.clip_grad_norm_(list(parameters.values()), self._config.max_grad_norm)
            norms[name] = float(norm)
        finite = all(map(math.isfinite, norms.values()))
        if finite:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norms if finite else None


class _Statistics:
    """Statistics gathered over micro-batches."""

    def __init__(self, has_critic: bool) -> None:
        self.has_critic = has_critic
        self.policy: list[PolicyStatistics] = []
        self.value: list[ValueStatistics] = []
        self.kl: list[KLStatistics] = []

    def mean_kl(self) -> float:
        """Of the loss's KL term over all micro-batches, nats per token; NaN where there was none."""
        return combine_statistics(self.kl).kl if self.kl else math.nan

    def metrics(self) -> dict[str, float]:
        """Token means over all micro-batches; NaN where there was none."""
        policy = combine_statistics(self.policy) if self.policy else None
        value = combine_statistics(self.value) if self.value else None
        figures = {f"policy/{name}": getattr(policy, name, math.nan) for name in POLICY_FIGURES}
        figures |= {
            f"importance/{name}": getattr(policy, f"importance_{name}", math.nan) for name in IMPORTANCE_FIGURES
        }
        if not self.has_critic:
            return figures
        return figures | {f"critic/{name}": getattr(value, name, math.nan) for name in CRITIC_FIGURES}


def _pair(estimates: Estimates) -> tuple[Tensor, Tensor]:
    return estimates.log_probs, estimates.reference_log_probs
