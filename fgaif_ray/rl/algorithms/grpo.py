"""GRPO on dense rewards: a segment's reward in units of its group, and no critic.

DeepSeekMath (arXiv 2402.03300, section 4.1.3, process supervision): each segment's reward is normalised by mean and
deviation over all segments of all responses to the image and prompt, and a token's advantage is the sum of the
normalised rewards of its segment and all after it. Each fact type is normalised by itself before types are added with
their weights, as GDPO does with several rewards, so that no type drowns another.

What is paid or deducted beside the segments (length, a missing end, KL in the reward) belongs to no segment: a token is
credited with what is still to come of it, less the mean of what comes to the others from the same token on.
"""

from typing import Final

import torch
from torch import Tensor

from fgaif_ray.rl.algorithms.base import (
    Advantages,
    Algorithm,
    RewardedTokens,
    groups_of,
    less_the_others,
    returns_to_go,
    segment_sums,
)

LEAST_DEVIATION: Final = 1e-4
"""Of a type's rewards in a group; where they are closer together there is nothing to tell apart."""


def credit(given: RewardedTokens) -> Advantages:
    """Sums of normalised segment rewards from each token's segment on."""
    batch = given.batch
    kept = torch.where(given.mask, given.rewards, torch.zeros_like(given.rewards))
    rest = returns_to_go(kept - torch.where(given.mask, segment_sums(batch, kept), torch.zeros_like(kept)))
    paid = torch.zeros_like(kept)  # normalised rewards at the tokens that end segments
    beside = torch.zeros_like(kept)
    for rows in groups_of(batch):
        beside[rows] = less_the_others(rest[rows])
        normalised = _normalised([_rewards_of(given, row) for row in rows], given.type_weights)
        for row, rewards in zip(rows, normalised, strict=True):
            for end, reward in zip(batch.trajectories[row].token_ends, rewards.tolist(), strict=True):
                paid[row, end] += reward
    advantages = torch.where(given.mask, returns_to_go(paid) + beside, torch.zeros_like(kept))
    return Advantages(advantages, None, advantages)


def _rewards_of(given: RewardedTokens, row: int) -> Tensor:
    """``[segments, types]`` weighted."""
    trajectory = given.batch.trajectories[row]
    rewards = torch.tensor(trajectory.per_type_rewards or (), dtype=torch.float64)
    return rewards.reshape(len(trajectory.token_ends), -1)


def _normalised(rewards: list[Tensor], weights: tuple[float, ...]) -> list[Tensor]:
    """``[segments]`` of each response: its types in units of the group's deviation, times their weights, added up."""
    filled = [one for one in rewards if len(one)]
    if not filled:
        return [torch.zeros(0) for _ in rewards]
    together = torch.cat(filled)  # [segments_of_all, types]
    mean, deviation = together.mean(0), together.std(0, correction=0)  # [types] each
    usable = deviation > LEAST_DEVIATION
    worth = torch.tensor(weights or [1.0] * len(mean), dtype=mean.dtype)  # [types]; the division has taken it away
    scale = torch.where(usable, worth / deviation.clamp(min=LEAST_DEVIATION), torch.zeros_like(deviation))
    return [((one - mean) * scale).sum(1) if len(one) else torch.zeros(0) for one in rewards]


GRPO: Final = Algorithm("grpo", has_critic=False, credit=credit)
