"""Entropy of next-token distributions, computed a chunk of positions at a time."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def entropy_from_logits(logits: Tensor, chunk_tokens: int = 1024) -> Tensor:
    """Compute the entropy in nats of the distribution at each position.

    It works on `chunk_tokens` positions at a time and recomputes them in the backward pass, so that beside the
    logits only one chunk of float32 probabilities is in memory. Tokens banned by a logit of minus infinity count
    as impossible.

    Args:
        logits: `[..., vocabulary]`.
        chunk_tokens: positions per chunk, at least 1.

    Returns:
        `[...]`, float32 (float64 for float64 logits).

    Raises:
        ValueError: chunk_tokens is less than 1.
    """
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, not {chunk_tokens}")
    if logits.dim() > 2 and not logits.is_contiguous():
        # Row by row, since flattening a slice of the logits would copy all of it.
        return torch.stack([entropy_from_logits(row, chunk_tokens) for row in logits])
    chunks = torch.split(logits.reshape(-1, logits.shape[-1]), chunk_tokens)  # each [chunk_tokens, vocabulary]
    if torch.is_grad_enabled() and logits.requires_grad:
        entropies = [checkpoint(_chunk_entropy, chunk, use_reentrant=False) for chunk in chunks]
    else:
        entropies = [_chunk_entropy(chunk) for chunk in chunks]
    return torch.cat(entropies).view(logits.shape[:-1])


def _chunk_entropy(logits: Tensor) -> Tensor:
    log_probs = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(dim=-1)  # [chunk, vocabulary]
    # 0 * -inf is NaN, forward and backward; a banned token contributes nothing.
    return -(log_probs.exp() * log_probs.masked_fill(log_probs == float("-inf"), 0.0)).sum(dim=-1)  # [chunk]
