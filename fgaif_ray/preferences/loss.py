"""The loss of direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, equation 7).

    loss = -log sigmoid(beta (log pi(chosen) / ref(chosen) - log pi(rejected) / ref(rejected)))

A segment after its context is a continuation like a whole response after the prompt (C-DPO of SENTINEL, arXiv
2507.12455).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class PreferenceLoss:
    """The loss of a part of a batch, and what there is to know of its pairs."""

    loss: Tensor
    """Scalar, with gradient; the losses of all parts add up to the batch's."""
    losses: Tensor
    """``[pairs]``."""
    chosen: Tensor
    """``[pairs]`` implicit reward, beta times the log-ratio."""
    rejected: Tensor
    """``[pairs]`` likewise."""


def log_ratio(log_probs: Tensor, reference_log_probs: Tensor, lengths: Tensor, *, normalise: bool) -> Tensor:
    """Return the log-probability ratio of each row to the reference, nats, ``[rows]``.

    Args:
        log_probs: ``[rows, tokens]`` under the policy, zero on padding.
        reference_log_probs: the same under the reference.
        lengths: ``[rows]`` tokens, at least 1.
        normalise: whether to divide it by the tokens.
    """
    ratio = (log_probs - reference_log_probs.detach()).sum(dim=1)
    return ratio / lengths if normalise else ratio


def preference_loss(chosen: Tensor, rejected: Tensor, beta: float, denominator: float | Tensor) -> PreferenceLoss:
    """Compute the sigmoid loss.

    Args:
        chosen: ``[pairs]`` log-probability ratio of the better continuation to the reference.
        rejected: the same of the worse.
        beta: weight of the pull to the reference, more than 0.
        denominator: pairs of the whole batch, over all parts and workers.

    Raises:
        ValueError: beta is not positive, or the shapes differ.
    """
    if not beta > 0:
        raise ValueError(f"beta must be positive, not {beta}")
    if chosen.shape != rejected.shape or chosen.dim() != 1:
        raise ValueError(f"chosen and rejected must be [pairs], not {list(chosen.shape)} and {list(rejected.shape)}")
    losses = -nn.functional.logsigmoid(beta * (chosen - rejected))  # [pairs]
    return PreferenceLoss(
        loss=losses.sum() / denominator,
        losses=losses.detach(),
        chosen=beta * chosen.detach(),
        rejected=beta * rejected.detach(),
    )


def batch_metrics(parts: Tensor) -> dict[str, float]:
    """Metrics of a batch.

    Args:
        parts: ``[5]`` sums over its pairs: pairs, losses, chosen rewards, rejected rewards, pairs told apart.
    """
    pairs, loss, chosen, rejected, right = parts.tolist()
    return {
        "dpo/loss": loss / pairs,
        "dpo/chosen_reward": chosen / pairs,
        "dpo/rejected_reward": rejected / pairs,
        "dpo/margin": (chosen - rejected) / pairs,
        "dpo/told_apart": right / pairs,
    }


def summed(part: PreferenceLoss) -> Tensor:
    """The sums that ``batch_metrics`` takes, of one part, ``[5]`` float64."""
    right = part.chosen > part.rejected
    count = torch.ones_like(part.losses)
    columns = (count, part.losses, part.chosen, part.rejected, right)
    return torch.stack([column.double().sum() for column in columns])
