"""RLOO on dense rewards: the other responses to the image and prompt are the baseline, segment by segment.

Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740.

What is still to be paid to a response when ``s`` of its segments have been, less the mean of what was still to be paid
to the others after ``s`` of theirs. A response that has ended has nothing to come. The baseline knows nothing of the
token or of what follows it, so it adds no bias.
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
)
from fgaif_ray.rl.algorithms.ppo import whitened


def credit(given: RewardedTokens) -> Advantages:
    """Returns to go less those of the group, whitened over all processes where ``whiten_advantages`` asks for it."""
    to_go = returns_to_go(torch.where(given.mask, given.rewards, torch.zeros_like(given.rewards)))
    raw = torch.zeros_like(to_go)
    for rows in groups_of(given.batch):
        ends = [given.batch.trajectories[row].token_ends for row in rows]
        stages = [_stage_of_tokens(one, to_go.shape[1]) for one in ends]  # [response_tokens] each
        expected = _at_stages(to_go[rows], ends)  # [responses, stages]
        baseline = expected - less_the_others(expected)  # [responses, stages] the mean of the others
        for place, row in enumerate(rows):
            raw[row] = to_go[row] - baseline[place, stages[place].to(baseline.device)]
    raw = torch.where(given.mask, raw, torch.zeros_like(raw))
    return Advantages(whitened(raw, given) if given.options.whiten_advantages else raw, None, raw)


def _stage_of_tokens(ends: tuple[int, ...], tokens: int) -> Tensor:
    """How many segments have been paid before each token, ``[response_tokens]``."""
    return torch.searchsorted(torch.tensor(sorted(ends)), torch.arange(tokens))


def _at_stages(to_go: Tensor, ends: list[tuple[int, ...]]) -> Tensor:
    """What is still to be paid to each response after so many segments, ``[responses, most_segments + 1]``.

    Args:
        to_go: ``[responses, response_tokens]``.
        ends: token that ends each segment.
    """
    found = to_go.new_zeros(len(to_go), max(map(len, ends)) + 1)
    for row, own in enumerate(ends):
        starts = [0, *(end + 1 for end in sorted(own))]
        for stage, start in enumerate(starts):
            if start < to_go.shape[1]:
                found[row, stage] = to_go[row, start]
    return found


RLOO: Final = Algorithm("rloo", has_critic=False, credit=credit)
