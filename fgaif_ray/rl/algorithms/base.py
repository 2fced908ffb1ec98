"""The seam: what an algorithm is given, what it gives back, and what it needs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fgaif_ray.config import PPOConfig
from fgaif_ray.rl.trajectories import TrajectoryBatch
from fgaif_ray.vlm.group import LearnerGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardedTokens:
    """One learner process's responses of a step, with all that has been paid and taken for them."""

    batch: TrajectoryBatch
    rewards: Tensor
    """``[batch, response_tokens]`` the batch's token rewards less the KL penalty, where rewards pay for it."""
    mask: Tensor
    """``[batch, response_tokens]`` bool: tokens of rewarded responses."""
    values: Tensor | None
    """``[batch, response_tokens]`` of the critic before the update; None where there is none."""
    type_weights: tuple[float, ...]
    """``[types]`` that the segments' rewards were weighted with; empty for 1."""
    options: PPOConfig
    """``align.ppo``: gamma, lambda, whitening."""
    group: LearnerGroup
    """The learner processes; the responses to an image and prompt are all in one of them."""


@dataclass(frozen=True, slots=True)
class Advantages:
    """What an update learns from; zero under the mask's false."""

    advantages: Tensor
    """``[batch, response_tokens]``."""
    returns: Tensor | None
    """``[batch, response_tokens]`` that the critic learns; None without a critic."""
    raw: Tensor
    """``[batch, response_tokens]`` the advantages before they are scaled over the batch, for metrics."""


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A way to credit tokens."""

    name: str
    has_critic: bool
    """Whether a critic is built, trained and saved."""
    credit: Callable[[RewardedTokens], Advantages]


def groups_of(batch: TrajectoryBatch) -> list[list[int]]:
    """Rows of the rewarded responses to each image and prompt; those that stand alone are left out.

    What they would be compared with is missing, so nothing is learnt from them.
    """
    rows: dict[tuple[str, str], list[int]] = {}
    for row, (trajectory, counts) in enumerate(zip(batch.trajectories, batch.sample_mask.tolist(), strict=True)):
        if counts:
            rows.setdefault((trajectory.image, trajectory.prompt), []).append(row)
    return [members for members in rows.values() if len(members) > 1]


def returns_to_go(rewards: Tensor) -> Tensor:
    """Sum of the rewards of a token and all after it, ``[batch, response_tokens]``.

    Args:
        rewards: the same shape, zero on padding.
    """
    return rewards.flip(1).cumsum(1).flip(1)


def less_the_others(values: Tensor) -> Tensor:
    """Each row less the mean of the other rows, ``[rows, columns]``; of at least two rows."""
    others = (values.sum(0, keepdim=True) - values) / (len(values) - 1)
    return values - others


def segment_sums(batch: TrajectoryBatch, like: Tensor) -> Tensor:
    """The segments' rewards of all types at the tokens that end them, ``[batch, response_tokens]``."""
    sums = torch.zeros_like(like)
    for row, trajectory in enumerate(batch.trajectories):
        for end, rewards in zip(trajectory.token_ends, trajectory.per_type_rewards or (), strict=False):
            sums[row, end] += sum(rewards)
    return sums
