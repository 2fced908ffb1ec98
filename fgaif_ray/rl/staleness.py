"""Rollouts that are one update behind the policy that learns from them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from fgaif_ray.rl.micro_batches import passes
from fgaif_ray.rl.policy import EncodedRows, PolicyModel


class PreviousPolicy:
    """The policy's adapter as it was before the newest update.

    It samples the next batch while the learner updates. It is needed to check that batch's log-probabilities, and by a
    resumed run to sample the same batch again.
    """

    def __init__(self, model: PolicyModel) -> None:
        """Start without a previous policy."""
        self._model = model
        self._kept: dict[str, Tensor] = {}

    @property
    def is_kept(self) -> bool:
        """Tell whether there is a previous policy."""
        return bool(self._kept)

    def keep(self) -> None:
        """Copy the current policy; call it before an update."""
        self._kept = self._copy()

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Turn the model into the previous policy while the block runs.

        Raises:
            ValueError: there is none.
        """
        if not self._kept:
            raise ValueError("no previous policy has been kept")
        present = self._copy()
        self._put(self._kept)
        try:
            yield
        finally:
            self._put(present)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the kept tensors by parameter name; empty if there are none."""
        return {name: tensor.cpu() for name, tensor in self._kept.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a ``state_dict``.

        Raises:
            ValueError: the names differ, so the state belongs to another configuration.
        """
        parameters = self._model.policy_parameters()
        if state and set(state) != set(parameters):
            raise ValueError("the state holds other parameters than this policy")
        self._kept = {name: tensor.to(parameters[name].device) for name, tensor in state.items()}

    def _copy(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self._model.policy_parameters().items()}

    @torch.no_grad()
    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self._model.policy_parameters().items():
            parameter.copy_(tensors[name])


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
