"""The learner processes that share a batch; alone, every operation is the identity.

It uses only sums and gathers of tensors, so that gloo (CPU) and NCCL (GPU) serve alike and nothing is pickled.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


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
        """Merge the metrics of all processes: ``*_max`` and ``timing/*`` by maximum, ``count/*`` by sum, else by mean.

        NaN stands for "nothing to measure" and does not count. Every process must hold the same names.
        """
        names = sorted(metrics)
        gathered = self.gather(torch.tensor([metrics[name] for name in names], dtype=torch.float64))
        return {name: _merged(name, column) for name, column in zip(names, gathered.T.tolist(), strict=True)}


def _merged(name: str, figures: list[float]) -> float:
    known = [figure for figure in figures if not math.isnan(figure)]
    if not known:
        return math.nan
    if name.endswith("_max") or name.startswith("timing/"):
        return max(known)
    return sum(known) / (1 if name.startswith("count/") else len(known))
