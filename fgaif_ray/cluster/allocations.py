"""Bytes that tensors take while code runs, counted as torch allocates, keeps and frees them.

What is counted are storages, so that views count once, and their sizes, so that tensors of the meta device, which have
no content, count like any other.
"""

import weakref
from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AttentionInterface

FUSED_ATTENTION: Final = "fused_without_content"


class Allocations(TorchDispatchMode):
    """Counts the storages that are made inside its ``with`` block.

    Example: ``with Allocations() as made: (x @ y).sum()`` leaves the size of the product in ``made.peak``.
    """

    def __init__(self, ignored: Iterable[Tensor] = ()) -> None:
        """Counts from zero.

        Args:
            ignored: what was there before, such as a model's parameters.
        """
        super().__init__()
        self.live = 0
        """Bytes that are there."""
        self.peak = 0
        """The most that were there at once."""
        self.kept = 0
        """The most that forward passes kept at once for their backward passes."""
        self._ignored = {tensor.untyped_storage()._cdata for tensor in ignored}
        self._made: set[int] = set()
        self._saved: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def __enter__(self) -> "Allocations":
        """Begins to count."""
        self._hooks.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Ends it; what is freed later still counts down."""
        super().__exit__(*error)
        self._hooks.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and takes note of what it has made."""
        result = func(*_on_one_device(args), **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._ignored and storage._cdata not in self._made:
                self._made.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes()).atexit = False
        self.peak = max(self.peak, self.live)
        return result

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata in self._made:
            self._saved[storage._cdata] = storage.nbytes()
            self.kept = max(self.kept, sum(self._saved.values()))
        return tensor

    def _free(self, key: int, size: int) -> None:
        self._made.discard(key)
        self._saved.pop(key, None)
        self.live -= size


def _tensors(value: Any) -> list[Tensor]:
    """Tensors of an argument or a result; operations take and give nothing deeper than lists of them."""
    values = value if isinstance(value, (tuple, list)) else (value,)
    return [one for one in values if isinstance(one, Tensor)]


def _on_one_device(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments of an operation; where some are on the meta device, so are all."""
    found = {tensor.is_meta for one in args for tensor in _tensors(one)}
    return args if len(found) < 2 else tree_map_only(Tensor, lambda tensor: tensor.to("meta"), args)


class _FusedAttention(torch.autograd.Function):
    """What fused attention makes and keeps, without computing it: on the meta device torch would take the attention
    that writes out every weight.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``[batch, heads, tokens, width]``; keeps its inputs, its output, and a float32 normaliser for each query."""
        batch, heads, tokens, _ = query.shape
        output = query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(query, key, value, output, query.new_empty(batch, heads, tokens, dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *_gradients: Tensor) -> tuple[Tensor, ...]:
        """Gradients like the inputs."""
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _attend(_module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **_options: Any) -> tuple[Tensor, None]:
    return _FusedAttention.apply(query, key, value).transpose(1, 2).contiguous(), None


AttentionInterface.register(FUSED_ATTENTION, _attend)  # a name without masks: transformers builds none
