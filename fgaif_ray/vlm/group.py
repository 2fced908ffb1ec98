"""The learner processes that share a batch; alone, every operation is the identity.

It uses only sums and gathers of tensors, so that gloo (CPU) and NCCL (GPU) serve alike and nothing is pickled.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor


class WeightedMean(float):
    """A mean that knows how much it is a mean of, so that those of several processes make the mean of all.

    Example: ``WeightedMean(0.5, 40)`` in one process and ``WeightedMean(1.0, 10)`` in another merge to 0.6.
    """

    weight: float

    def __new__(cls, value: float, weight: float) -> Self:
        """Make it of a number and its weight: tokens, responses, segments; 0 where there was nothing to measure."""
        mean = super().__new__(cls, value)
        mean.weight = float(weight)
        return mean


class LearnerGroup:
    """The default process group, if there is one.

    Example: ``LearnerGroup(torch.device("cpu")).sum(torch.ones(1))`` is the number of processes.
    """

    def __init__(self, device: torch.device) -> None:
        """``device`` is where tensors must be for the group's backend."""
        self._device = device
        self._distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1

    @property
    def device(self) -> torch.device:
        """The device of the group's tensors."""
        return self._device

    @property
    def size(self) -> int:
        """Number of processes."""
        return dist.get_world_size() if self._distributed else 1

    @property
    def rank(self) -> int:
        """Place of this process, from 0."""
        return dist.get_rank() if self._distributed else 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the processes' tensors of one shape, as a new tensor."""
        if not self._distributed:
            return tensor
        total = tensor.detach().clone().to(self._device)
        dist.all_reduce(total)
        return total

    def largest(self, number: int) -> int:
        """Return the largest of the processes' numbers."""
        return int(self.gather(torch.tensor(number)).max())

    def barrier(self) -> None:
        """Wait until every process has arrived here."""
        self.sum(torch.zeros(1))

    def sum_all(self, tensors: Sequence[Tensor]) -> None:
        """Sum several tensors of one dtype in place, in one message."""
        if not self._distributed:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def gather(self, tensor: Tensor) -> Tensor:
        """Gather the processes' tensors of one shape, ``[processes, ...]``, on the CPU."""
        if not self._distributed:
            return tensor[None].cpu()
        own = tensor.to(self._device)
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own)
        return torch.stack(parts).cpu()

    def merge(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Merge the metrics of all processes: ``*_max`` and ``timing/*`` by maximum, ``count/*`` by sum, a
        ``WeightedMean`` by its weights, else by plain mean (what is the same in all of them, or is one figure of each).

        NaN stands for "nothing to measure" and does not count. Every process must hold the same names.
        """
        names = sorted(metrics)
        own = [(metrics[name], getattr(metrics[name], "weight", 1.0)) for name in names]
        gathered = self.gather(torch.tensor(own, dtype=torch.float64).reshape(-1, 2))  # [processes, names, 2]
        return {name: _merged(name, gathered[:, place].tolist()) for place, name in enumerate(names)}


def _merged(name: str, parts: Sequence[tuple[float, float]]) -> float:
    known = [(figure, weight) for figure, weight in parts if weight > 0 and not math.isnan(figure)]
    if not known:
        return math.nan
    figures = [figure for figure, _ in known]
    if name.endswith("_max") or name.startswith("timing/"):
        return max(figures)
    if name.startswith("count/"):
        return sum(figures)
    return sum(figure * weight for figure, weight in known) / sum(weight for _, weight in known)
