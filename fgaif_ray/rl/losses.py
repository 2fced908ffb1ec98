"""The PPO losses (Schulman et al. 2017), as means over real tokens, each with its metrics.

Every loss takes `denominator`: the real tokens of the whole minibatch, summed over micro-batches and workers.
The losses of the parts then add up to the loss of the whole, however unevenly the tokens are spread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypeVar

import torch
from torch import Tensor

from fgaif_ray.rl.advantages import MaskedStatistics, masked_mean, selected
from fgaif_ray.rl.kl import KLEstimator, kl_estimate


@dataclass(frozen=True, slots=True)
class PolicyStatistics:
    """Statistics over the real tokens of one `policy_loss`; NaN without any."""

    tokens: int
    loss: float
    """The token mean, whatever the denominator."""
    clip_share: float
    """Share of tokens whose gradient the clip has cut off."""
    approximate_kl: float
    """KL(old || new) in nats per token, estimator k3."""
    ratio_mean: float
    ratio_max: float
    importance_weight_mean: float
    """Learner over sampler probability, after truncation; 1 without correction."""
    importance_weight_max: float
    """The same before truncation."""
    importance_truncated_share: float


@dataclass(frozen=True, slots=True)
class ValueStatistics:
    """Statistics over the real tokens of one `value_loss`; NaN without any."""

    tokens: int
    loss: float
    clip_share: float
    """Share of tokens where the clipped error is the larger one."""
    value_mean: float
    return_mean: float


@dataclass(frozen=True, slots=True)
class EntropyStatistics:
    """Statistics over the real tokens of one `entropy_loss`; NaN without any."""

    tokens: int
    entropy: float
    """Nats per token."""


@dataclass(frozen=True, slots=True)
class KLStatistics:
    """Statistics over the real tokens of one `kl_loss`; NaN without any."""

    tokens: int
    kl: float
    """Weighted estimate in nats per token."""


RatioLevel = Literal["token", "sequence"]
Statistics = TypeVar("Statistics", PolicyStatistics, ValueStatistics, EntropyStatistics, KLStatistics)


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_range: float,
    clip_high: float | None = None,
    ratio_level: RatioLevel = "token",
    behaviour_log_probs: Tensor | None = None,
    importance_cap: float = 2.0,
    denominator: float | Tensor | None = None,
) -> tuple[Tensor, PolicyStatistics]:
    """Clipped surrogate loss; minimising it raises the probability of tokens with positive advantage.

    The engine that samples and the learner compute slightly different probabilities. Given
    `behaviour_log_probs`, each token is weighted by min(learner / sampler, importance_cap), a constant for
    the gradient (truncated importance sampling, Ionides 2008; for LLM rollouts Yao et al. 2025).

    Args:
        log_probs: `[batch, response_tokens]` under the policy being trained, with gradient.
        old_log_probs: the same under the learner's policy before its first update on this batch.
        advantages: `[batch, response_tokens]`.
        mask: `[batch, response_tokens]` bool; false on padding and on samples without reward.
        clip_range: how far the ratio may move from 1 before its gradient is cut, more than 0 (FGAIF: 0.2).
        clip_high: how far above 1, where that is another number: a larger one lets unlikely tokens rise (DAPO,
            arXiv 2503.14476, section 3.1).
        ratio_level: ``sequence`` takes for each token the geometric mean of its response's ratios (GSPO-token,
            arXiv 2507.18071, section 4.3).
        behaviour_log_probs: what the sampler reported.
        importance_cap: the largest weight, more than 0.
        denominator: see the module.

    Returns:
        The scalar loss and its statistics.

    Raises:
        ValueError: clip_range, clip_high or importance_cap is not positive, the mask is not bool, or a shape differs.
    """
    high = clip_range if clip_high is None else clip_high
    if not (clip_range > 0 and high > 0 and importance_cap > 0):
        raise ValueError(
            f"clip_range, clip_high and importance_cap must be positive, not {clip_range}, {high}, {importance_cap}"
        )
    # Gathered first: an infinite ratio on padding would otherwise turn its zero gradient into NaN.
    new, old, advantage = (selected(values, mask) for values in (log_probs, old_log_probs, advantages))  # [selected]
    old, advantage = old.detach(), advantage.detach()
    log_ratio = new - old  # [selected]
    if ratio_level == "sequence":
        log_ratio = _of_sequences(log_ratio, mask)
    ratio = log_ratio.exp()
    unclipped = -advantage * ratio
    clipped = -advantage * ratio.clamp(1.0 - clip_range, 1.0 + high)
    if behaviour_log_probs is None:
        raw_weight = torch.ones_like(old)  # [selected]
    else:
        raw_weight = (old - selected(behaviour_log_probs, mask).detach()).exp()  # [selected]
    weight = raw_weight.clamp(max=importance_cap)
    token_losses = weight * torch.maximum(unclipped, clipped)  # [selected]
    loss = _mean(token_losses, denominator)
    detached = ratio.detach()
    figures = _figures(
        token_losses,
        clipped > unclipped,
        detached - 1.0 - log_ratio.detach(),
        detached,
        _maximum(detached),
        weight,
        _maximum(raw_weight),
        raw_weight > importance_cap,
    )
    return loss, PolicyStatistics(new.numel(), *figures)


def _of_sequences(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Give each token the value of its response's mean, and the gradient of its own, ``[selected]``."""
    row_of = mask.nonzero(as_tuple=True)[0]  # [selected]
    sums = torch.zeros(len(mask), dtype=log_ratio.dtype, device=log_ratio.device)
    means = sums.index_add(0, row_of, log_ratio.detach()) / mask.sum(1).clamp(min=1)  # [batch]
    return means[row_of] + (log_ratio - log_ratio.detach())


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    clip_range: float | None,
    denominator: float | Tensor | None = None,
) -> tuple[Tensor, ValueStatistics]:
    """Half the squared error to the returns; the larger of plain and with the value clipped.

    Args:
        values: `[batch, response_tokens]`, with gradient.
        old_values: the critic's values before its first update on this batch.
        returns: `[batch, response_tokens]`.
        mask: `[batch, response_tokens]` bool.
        clip_range: how far a value may move from its old one; more than 0 (FGAIF: 0.2), or None for the plain
            squared error.
        denominator: see the module.

    Returns:
        The scalar loss and its statistics.

    Raises:
        ValueError: clip_range is not positive, the mask is not bool, or a shape differs.
    """
    if clip_range is not None and not clip_range > 0:
        raise ValueError(f"clip_range must be positive or None, not {clip_range}")
    new, old, target = (selected(tensor, mask) for tensor in (values, old_values, returns))  # [selected]
    old, target = old.detach(), target.detach()
    squared = (new - target).square()  # [selected]
    if clip_range is None:
        clipped = squared
    else:
        clipped = (old + (new - old).clamp(-clip_range, clip_range) - target).square()  # [selected]
    token_losses = 0.5 * torch.maximum(squared, clipped)
    figures = _figures(token_losses, clipped > squared, new, target)
    return _mean(token_losses, denominator), ValueStatistics(new.numel(), *figures)


def entropy_loss(
    entropies: Tensor, mask: Tensor, *, denominator: float | Tensor | None = None
) -> tuple[Tensor, EntropyStatistics]:
    """Minus the mean entropy: adding a positive multiple of it to the loss keeps the policy exploring.

    Args:
        entropies: `[batch, response_tokens]` in nats, from `entropy_from_logits`.
        mask: `[batch, response_tokens]` bool.
        denominator: see the module.

    Raises:
        ValueError: the mask is not bool or a shape differs.
    """
    chosen = selected(entropies, mask)  # [selected]
    return -_mean(chosen, denominator), EntropyStatistics(chosen.numel(), *_figures(chosen))


def kl_loss(
    log_probs: Tensor,
    reference_log_probs: Tensor,
    behaviour_log_probs: Tensor,
    mask: Tensor,
    *,
    estimator: KLEstimator = "k1",
    importance_cap: float = 2.0,
    denominator: float | Tensor | None = None,
) -> tuple[Tensor, KLStatistics]:
    """KL(policy || reference) as a term of the policy's loss, whose gradient is right whatever the estimator.

    Differentiating an estimator of the KL does not estimate the KL's gradient: that of k1 is zero on average, that of
    k3 is the gradient of KL(reference || policy). The gradient, sum over tokens of policy * d * grad log policy with
    d = log policy - log reference, is that of k2 on the policy's own samples (Tang & Munos 2025). So the value is the
    estimator's and the gradient is k2's, both weighted by min(policy / sampler, importance_cap), a constant for the
    gradient: the policy moves away from the one that sampled, in the epochs of a step and with stale rollouts.
    (Without truncation it equals the gradient of ratio * k3 as DeepSeek-V3.2 has it.)

    Each token's KL is taken given the tokens before it: unlike a penalty on the rewards, it does not charge a token for
    where it leads.

    Args:
        log_probs: `[batch, response_tokens]` under the policy being trained, with gradient.
        reference_log_probs: the same under the reference.
        behaviour_log_probs: what the sampler reported.
        mask: `[batch, response_tokens]` bool.
        estimator: of the value.
        importance_cap: the largest weight, more than 0.
        denominator: see the module.

    Returns:
        The scalar loss, not yet multiplied by its coefficient, and its statistics.

    Raises:
        ValueError: importance_cap is not positive, the mask is not bool, a shape differs, or the estimator is unknown.
    """
    if not importance_cap > 0:
        raise ValueError(f"importance_cap must be positive, not {importance_cap}")
    chosen = (selected(values, mask) for values in (log_probs, reference_log_probs, behaviour_log_probs))
    new, reference, behaviour = chosen  # [selected]
    weight = (new - behaviour).detach().exp().clamp(max=importance_cap)  # [selected]
    value = weight * kl_estimate(new.detach(), reference.detach(), estimator)  # [selected]
    surrogate = weight * kl_estimate(new, reference.detach(), "k2")  # [selected]
    loss = _mean(value + (surrogate - surrogate.detach()), denominator)
    return loss, KLStatistics(new.numel(), *_figures(value))


def explained_variance(errors: MaskedStatistics, returns: MaskedStatistics) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 no better than a constant.

    Args:
        errors: of returns less values.
        returns: of the same tokens.

    Returns:
        NaN where the returns do not vary, since there is nothing to explain.
    """
    return 1.0 - errors.variance / returns.variance if returns.variance > 0 else float("nan")


def combine_statistics(parts: Sequence[Statistics]) -> Statistics:
    """Several micro-batches as one: means weighted by tokens, `*_max` by maximum, `tokens` by sum.

    Raises:
        ValueError: there is nothing to combine.
    """
    if not parts:
        raise ValueError("no statistics to combine")
    filled = [part for part in parts if part.tokens] or parts[:1]
    tokens = sum(part.tokens for part in filled)
    combined: dict[str, float] = {}
    for name in (field.name for field in fields(filled[0]) if field.name != "tokens"):
        figures = [getattr(part, name) for part in filled]
        if name.endswith("_max") or tokens == 0:
            combined[name] = max(figures)
        else:
            combined[name] = sum(figure * part.tokens for figure, part in zip(figures, filled, strict=True)) / tokens
    return type(filled[0])(tokens=tokens, **combined)


def _mean(chosen: Tensor, denominator: float | Tensor | None) -> Tensor:
    return masked_mean(chosen, torch.ones_like(chosen, dtype=torch.bool), denominator)


def _maximum(chosen: Tensor) -> Tensor:
    return chosen.max() if chosen.numel() else chosen.new_tensor(float("nan"))


def _figures(*tensors: Tensor) -> list[float]:
    """The mean of each, in one transfer from the device."""
    dtype = tensors[0].dtype  # of the losses; shares come as bool
    figures: list[float] = torch.stack([tensor.detach().to(dtype).mean() for tensor in tensors]).tolist()
    return figures
