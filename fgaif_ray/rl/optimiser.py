"""AdamW over adapters that several learner processes train together."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fgaif_ray.vlm.group import LearnerGroup


class AdapterOptimiser:
    """AdamW without weight decay over named groups of parameters, each with a rate and a clip of its own.

    Example: ``AdapterOptimiser({"policy": model.policy_parameters()}, {"policy": 1e-5}, 1.0, group)``
    """

    def __init__(
        self,
        groups: Mapping[str, Mapping[str, nn.Parameter]],
        rates: Mapping[str, float],
        max_grad_norm: float,
        group: LearnerGroup,
    ) -> None:
        """Starts with a new optimiser.

        Args:
            groups: parameters by name, by the group's name.
            rates: learning rate of each group.
            max_grad_norm: that a group's gradient is clipped to.
            group: the learner processes, which all make the same steps.
        """
        self._groups, self._max_grad_norm, self._group = groups, max_grad_norm, group
        self._optimizer = torch.optim.AdamW(
            [{"params": list(named.values()), "lr": rates[name]} for name, named in groups.items()],
            weight_decay=0.0,
            fused=True,
        )
        self._rates = [rates[name] for name in groups]

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups."""
        return tuple(self._groups)

    def scale_rates(self, scale: float) -> None:
        """Sets the learning rates to a multiple of what they were given as."""
        for parameters, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            parameters["lr"] = rate * scale

    def step(self, learning: Sequence[str]) -> dict[str, float] | None:
        """Make one step on the sum of the processes' gradients; returns the norms, or None if it was skipped because a
        gradient is not finite.

        Args:
            learning: names of the groups that are trained; the rest stays as it is.
        """
        norms = {}
        for name in learning:
            parameters = self._groups[name]
            gradients = [
                parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
                for parameter in parameters.values()
            ]
            self._group.sum_all(gradients)
            for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                parameter.grad = gradient
            # Clipped apart: a large error of the critic must not shrink the policy's step.
            norm = nn.utils.clip_grad_norm_(list(parameters.values()), self._max_grad_norm)
            norms[name] = float(norm)
        finite = all(map(math.isfinite, norms.values()))
        if finite:
            self._optimizer.step()
        self.drop_gradients()
        return norms if finite else None

    def drop_gradients(self) -> None:
        """Forgets what has been accumulated."""
        self._optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Tensor]:
        """The optimiser's tensors by parameter name."""
        state = {}
        for named in self._groups.values():
            for name, parameter in named.items():
                for key, value in self._optimizer.state.get(parameter, {}).items():
                    state[f"{key}/{name}"] = value.detach().cpu().clone()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a ``state_dict``."""
        named = {name: value for group in self._groups.values() for name, value in group.items()}
        for entry, tensor in state.items():
            key, name = entry.split("/", 1)
            # Adam's step counters are float32 and stay on the parameters' device, as fused Adam wants them.
            self._optimizer.state[named[name]][key] = tensor.to(named[name].device)
