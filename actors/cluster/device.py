"""The device of a worker, and the communication between workers."""

import os
from typing import TYPE_CHECKING, Final

import ray

from fgaif_ray.errors import UserError

if TYPE_CHECKING:
    import torch
    from ray.train.torch import TorchConfig

LOGICAL_GPUS: Final = "FGAIF_LOGICAL_GPUS"
"""Environment variable: GPUs of this cluster are logical only, and workers that are granted one compute on the CPU."""


def are_logical() -> bool:
    """Tell whether the GPUs of this cluster are logical only (``ray.logical_gpus``)."""
    return os.environ.get(LOGICAL_GPUS) == "1"


def worker_device() -> "torch.device":
    """Return the device of this worker: its CUDA device if Ray granted it a GPU or a share of one, else the CPU.

    Raises:
        UserError: Ray granted a GPU that torch does not see.
    """
    import torch

    # Without Ray, Ray's function would start one.
    if not ray.is_initialized() or not ray.get_gpu_ids() or are_logical():
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            "Ray granted this worker a GPU, but torch sees none: install the extra `gpu`, with a CUDA build of torch, "
            "on the nodes, or set num_gpus and gpus_per_worker to 0."
        )
    return torch.device("cuda", torch.cuda.current_device())


def torch_config() -> "TorchConfig":
    """Name the backend of Ray Train's workers: NCCL on GPUs, gloo on CPUs and with logical GPUs."""
    from ray.train.torch import TorchConfig

    return TorchConfig(backend="gloo" if are_logical() else None)
