"""Muon in float32: momentum whose update is orthogonalised, for the matrices inside a transformer.

In the naming phase 600 steps with it bring the loss that AdamW reaches after 1,000. It is the algorithm of
`torch.optim.Muon` (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), which orthogonalises in bfloat16,
one matrix at a time: measured on a CPU, training steps then take 3.5 times as long. Here matrices of one shape go
through float32 products together.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final, overload

import torch
from torch import Tensor, nn

COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic Newton-Schulz iteration: small singular values rise quickly, at the cost of exactness."""
ITERATIONS: Final = 5
UPDATE_RMS: Final = 0.2
"""Root mean square of an update at learning rate 1, that of AdamW in practice (Liu et al. 2025, arXiv 2502.16982)."""


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return near-orthogonal matrices with the singular vectors of the given ones.

    Args:
        matrices: ``[matrices, rows, columns]`` with rows <= columns.

    Returns:
        ``[matrices, rows, columns]``, singular values within about 0.7 to 1.2.
    """
    first, third, fifth = COEFFICIENTS
    values: Tensor = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = values @ values.mT  # [matrices, rows, rows]
        values = torch.baddbmm(values, torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth), values, beta=first)
    return values


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, with decoupled weight decay."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        """Takes two-dimensional parameters only; embeddings, heads, norms and biases belong to AdamW.

        Raises:
            ValueError: a parameter is not a matrix.
        """
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        if any(parameter.ndim != 2 for group in self.param_groups for parameter in group["params"]):
            raise ValueError("Muon updates matrices only: give other parameters to AdamW")

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    wide = _wide(self._momentum(parameter, group["momentum"]))
                    by_shape.setdefault(tuple(wide.shape), []).append((parameter, wide))
            for shape, members in by_shape.items():
                updates = orthogonalise(torch.stack([wide for _, wide in members]))
                scale = group["lr"] * UPDATE_RMS * max(shape) ** 0.5
                for (parameter, _), update in zip(members, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(update if update.shape == parameter.shape else update.mT, alpha=scale)
        return loss

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        gradient = parameter.grad
        assert gradient is not None
        state: dict[str, Any] = self.state[parameter]
        mean: Tensor = state.setdefault("mean", torch.zeros_like(parameter))
        mean.lerp_(gradient, 1 - momentum)
        return gradient.lerp(mean, momentum)


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
