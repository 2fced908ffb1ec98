"""What responses and their segments are worth by their labels: the reward of ``align.reward`` for certain verdicts.

A label takes the place of the reward model's verdict, at probability 1, and the facts that were verified that of the
estimates of their number. So weights, pay per fact, the cost of false statements, novelty, length and a missing end
count as they do in PPO, and a preference says what a reward would say. A label that is not to be used counts nothing.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fgaif_ray.records import ABSENT, CLASS_NAMES, Feedback, Segment
from fgaif_ray.rewards.composition import RewardOptions, compose_rewards, reward_segments
from fgaif_ray.rewards.fact_counts import labelled_counts


def response_worth(row: Feedback, options: RewardOptions) -> float:
    """Return the reward of a labelled response.

    Of a provided response the tokens are unknown: it has no length penalty, and has ended.

    Args:
        row: a labelled response; with its sampled ids where lengths count.
        options: of the reward.

    Raises:
        ValueError: a segment has no label of one of the types.
    """
    response = row.response
    if response.token_ids is None:
        length, options = 1, replace(options, length_penalty=0.0)
    else:
        length = len(response.token_ids)
    composed = compose_rewards(
        _certain(row.segments, options.types),
        torch.zeros(len(row.segments), dtype=torch.int64),  # where it is paid makes no difference to the sum
        length,
        response.finish_reason or "stop",
        options,
        _counted(row.segments, options.types),
    )
    return float(composed.per_token.sum())


def segment_worths(segments: Sequence[Segment], options: RewardOptions) -> list[float]:
    """Return the reward of each segment, ``[segments]``.

    Raises:
        ValueError: a segment has no label of one of the types.
    """
    if not segments:
        return []
    certain, facts = _certain(segments, options.types), _counted(segments, options.types)
    rewards = reward_segments(certain, options, facts)  # [segments, types]
    return [float(total) for total in rewards.sum(dim=1)]


def _certain(segments: Sequence[Segment], types: Sequence[str]) -> Tensor:
    """The labels as probabilities, ``[segments, types, classes]``."""
    for segment in segments:
        if missing := [name for name in types if name not in segment.labels]:
            raise ValueError(f"there is no label of the fact type {missing[0]}")
    labels = [[segment.labels[name] for name in types] for segment in segments]
    codes = [[ABSENT if code is None else code for code in row] for row in labels]
    shape = (len(segments), len(types))
    return nn.functional.one_hot(torch.tensor(codes, dtype=torch.int64).reshape(shape), len(CLASS_NAMES)).double()


def _counted(segments: Sequence[Segment], types: Sequence[str]) -> Tensor:
    """Facts, and the false ones among them, ``[segments, types, 2]``; one each where none was extracted."""
    counts = [[labelled_counts(segment, name) for name in types] for segment in segments]
    return torch.tensor(counts, dtype=torch.float64).reshape(len(segments), len(types), 2)
