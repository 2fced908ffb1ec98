"""Masked statistics, whitening, and generalised advantage estimation for right-padded responses.

Statistics are taken over the selected values alone, gathered first: the amount of padding cannot change them,
not even in the last bit, and a NaN in the padding does not spread.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fgaif_ray.vlm.group import LearnerGroup

# Added to the variance before the square root, so that constant values whiten to zero and not to NaN.
VARIANCE_EPSILON = 1e-8


@dataclass(frozen=True, slots=True)
class MaskedStatistics:
    """Count, mean and variance of selected values; several of them merge into those of the union."""

    count: int
    mean: float
    variance: float
    """Population variance (divided by count)."""


def selected(values: Tensor, mask: Tensor) -> Tensor:
    """The values under the mask, flat, at least in float32.

    Raises:
        ValueError: the mask is not bool (an integer mask would index) or has another shape.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask must be bool, not {mask.dtype}")
    if mask.shape != values.shape:
        raise ValueError(f"values {list(values.shape)} and mask {list(mask.shape)} differ in shape")
    chosen = values[mask]  # [selected]
    return chosen if chosen.dtype == torch.float64 else chosen.float()


def masked_mean(values: Tensor, mask: Tensor, denominator: float | Tensor | None = None) -> Tensor:
    """Mean of the values under the mask; 0, still attached to the graph, where nothing is selected.

    Args:
        values: any shape.
        mask: the same shape, bool.
        denominator: what to divide the sum by instead of the selected count: the count of the whole
            minibatch, so that the losses of its micro-batches add up to the loss of the whole.

    Returns:
        A scalar.

    Raises:
        ValueError: the mask is not bool or differs in shape.
    """
    chosen = selected(values, mask)  # [selected]
    return chosen.sum() / (max(chosen.numel(), 1) if denominator is None else denominator)


def masked_variance(values: Tensor, mask: Tensor) -> Tensor:
    """Population variance of the values under the mask, a scalar; 0 where nothing is selected.

    Raises:
        ValueError: the mask is not bool or differs in shape.
    """
    chosen = selected(values, mask)  # [selected]
    return (chosen - chosen.sum() / max(chosen.numel(), 1)).square().sum() / max(chosen.numel(), 1)


def masked_statistics(values: Tensor, mask: Tensor) -> MaskedStatistics:
    """Count, mean and population variance of the values under the mask.

    Raises:
        ValueError: the mask is not bool or differs in shape.
    """
    return MaskedStatistics(
        count=int(mask.sum()),
        mean=float(masked_mean(values, mask)),
        variance=float(masked_variance(values, mask)),
    )


def merge_statistics(parts: Iterable[MaskedStatistics]) -> MaskedStatistics:
    """Statistics of the union of disjoint parts, such as those of each learner worker (Chan et al. 1983)."""
    count, mean, square_sum = 0, 0.0, 0.0
    for part in parts:
        if part.count == 0:
            continue
        difference = part.mean - mean
        total = count + part.count
        square_sum += part.variance * part.count + difference**2 * count * part.count / total
        mean += difference * part.count / total
        count = total
    return MaskedStatistics(count=count, mean=mean, variance=square_sum / max(count, 1))


def statistics_over(group: LearnerGroup, values: Tensor, mask: Tensor) -> MaskedStatistics:
    """`masked_statistics` of the values of all processes, each of which calls this with its own."""
    own = masked_statistics(values, mask)
    figures = torch.tensor([own.count, own.mean, own.variance], dtype=torch.float64)
    parts: list[list[float]] = group.gather(figures).tolist()
    return merge_statistics(MaskedStatistics(int(count), mean, variance) for count, mean, variance in parts)


def whiten(values: Tensor, mask: Tensor, *, statistics: MaskedStatistics | None = None) -> Tensor:
    """Moves the values under the mask to zero mean and unit standard deviation; padding becomes zero.

    Args:
        values: any shape.
        mask: the same shape, bool.
        statistics: those of a larger whole that the values are part of (several workers); by default the
            values' own.

    Returns:
        The same shape.

    Raises:
        ValueError: the mask is not bool or differs in shape.
    """
    known = masked_statistics(values, mask) if statistics is None else statistics
    whitened = (values - known.mean) / (known.variance + VARIANCE_EPSILON) ** 0.5
    return torch.where(mask, whitened, torch.zeros_like(whitened))


@torch.no_grad()
def generalised_advantage_estimation(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lambda_: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of right-padded responses (Schulman et al. 2016).

    delta_t = r_t + gamma * V_{t+1} - V_t and A_t = delta_t + gamma * lambda * A_{t+1}, with V and A zero
    after the last real token: a response is an episode that ends there, also where it was cut.

    Args:
        rewards: `[batch, response_tokens]`, already penalised.
        values: `[batch, response_tokens]`, the critic's value before each token was chosen.
        mask: `[batch, response_tokens]` bool, true on real tokens, which come first; a row may be all false.
        gamma: discount, 0 to 1.
        lambda_: 0 is the one-step error, 1 the full return.

    Returns:
        Advantages and returns (advantages + values), both `[batch, response_tokens]`, zero on padding.

    Raises:
        ValueError: shapes differ, the mask is not bool or not right-padded, gamma or lambda_ is not in 0..1.
    """
    if not (rewards.dim() == 2 and rewards.shape == values.shape == mask.shape):
        raise ValueError(
            "rewards, values and mask must be [batch, response_tokens], "
            f"not {list(rewards.shape)}, {list(values.shape)}, {list(mask.shape)}"
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask must be bool, not {mask.dtype}")
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise ValueError("the mask must be right-padded: a real token follows padding")
    if not (0 <= gamma <= 1 and 0 <= lambda_ <= 1):
        raise ValueError(f"gamma and lambda_ must lie in 0 to 1, not {gamma}, {lambda_}")
    zeros = torch.zeros_like(rewards)
    rewards = torch.where(mask, rewards, zeros)
    values = torch.where(mask, values, zeros.to(values.dtype))
    advantages = torch.zeros_like(rewards + values)  # [batch, response_tokens]
    next_advantage = advantages.new_zeros(len(rewards))  # [batch]
    next_value = advantages.new_zeros(len(rewards))  # [batch]
    for step in reversed(range(rewards.shape[1])):
        delta = rewards[:, step] + gamma * next_value - values[:, step]  # [batch]
        next_advantage = delta + gamma * lambda_ * next_advantage
        next_value = values[:, step]
        advantages[:, step] = next_advantage
    return advantages, advantages + values
