"""A copy of the policy's adapter as it was at some step: the one that sampled, or the best one so far."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from fgaif_ray.rl.policy import PolicyModel


class KeptPolicy:
    """The policy's adapter as it was when ``keep`` was last called."""

    def __init__(self, model: PolicyModel) -> None:
        """Start without a kept policy."""
        self._model = model
        self._kept: dict[str, Tensor] = {}

    @property
    def is_kept(self) -> bool:
        """Tell whether there is a kept policy."""
        return bool(self._kept)

    def keep(self) -> None:
        """Copy the current policy."""
        self._kept = self._copy()

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Turn the model into the kept policy while the block runs.

        Raises:
            ValueError: there is none.
        """
        if not self._kept:
            raise ValueError("no policy has been kept")
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
