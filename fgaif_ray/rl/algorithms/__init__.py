"""Algorithms: functions from rewarded responses to the advantages of their tokens.

What they share is in ``fgaif_ray.rl.step``: estimates, the KL to the reference, the clipped loss, the optimiser. A new
one is a file here and a line in ``ALGORITHMS``.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from fgaif_ray.rl.algorithms.base import Advantages, Algorithm, RewardedTokens
from fgaif_ray.rl.algorithms.grpo import GRPO
from fgaif_ray.rl.algorithms.ppo import PPO
from fgaif_ray.rl.algorithms.rloo import RLOO

ALGORITHMS: Final[Mapping[str, Algorithm]] = MappingProxyType({one.name: one for one in (PPO, GRPO, RLOO)})

__all__ = ["ALGORITHMS", "Advantages", "Algorithm", "RewardedTokens"]
