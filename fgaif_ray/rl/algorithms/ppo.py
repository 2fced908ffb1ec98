"""PPO: a critic that sees the image, and generalised advantage estimation (Schulman et al. 2016, 2017; FGAIF 3.4)."""

from typing import Final

import torch

from fgaif_ray.rl.advantages import generalised_advantage_estimation, statistics_over, whiten
from fgaif_ray.rl.algorithms.base import Advantages, Algorithm, RewardedTokens


def credit(given: RewardedTokens) -> Advantages:
    """Advantages of temporal differences, whitened over all processes where ``whiten_advantages`` asks for it."""
    assert given.values is not None
    options = given.options
    raw, returns = generalised_advantage_estimation(
        given.rewards, given.values, given.mask, options.gamma, options.lambda_
    )
    return Advantages(whitened(raw, given) if options.whiten_advantages else raw, returns, raw)


def whitened(raw: torch.Tensor, given: RewardedTokens) -> torch.Tensor:
    """Advantages of zero mean and unit deviation over the batch of all processes."""
    return whiten(raw, given.mask, statistics=statistics_over(given.group, raw, given.mask))


PPO: Final = Algorithm("ppo", has_critic=True, credit=credit)
