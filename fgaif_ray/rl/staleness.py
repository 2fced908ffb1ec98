"""Log-probabilities under a policy that is not the newest, for rollouts that are one update behind."""

import torch
from torch import Tensor

from fgaif_ray.rl.micro_batches import passes
from fgaif_ray.rl.policy import EncodedRows, PolicyModel


@torch.no_grad()
def policy_log_probs(model: PolicyModel, rows: EncodedRows, size: int, tokens: int | None = None) -> Tensor:
    """Compute the policy's log-probabilities of the response tokens, ``[rows, response_width]``, in passes as
    ``micro_batches`` cuts them.
    """
    log_probs = torch.zeros(len(rows), rows.response_width, device=model.device)
    for one in passes(model, rows, torch.arange(len(rows), device=model.device), size, tokens):
        scored = model.log_probs(rows.select(one.rows)).log_probs
        if one.counts:
            log_probs[one.rows] = scored
    return log_probs
