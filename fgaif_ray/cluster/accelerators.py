"""Memory of the GPUs that clusters are made of, by what a cluster's file says about a node.

The figures are ``memory.total`` as ``nvidia-smi`` shows it on the device, in MiB: less than the name promises where
error correction takes its share (an L40S "with 48 GB" has 46,068 MiB). Which machine has which GPU is in the
documentation of Amazon EC2 (accelerated computing instances), of Google Compute Engine (GPU machine types), of GKE
(values of ``cloud.google.com/gke-accelerator``) and of Ray (``ray.util.accelerators``).
"""

from collections.abc import Mapping
from typing import Any, Final

MIB: Final = 1 << 20
ACCELERATOR_LABEL: Final = "ray.io/accelerator-type"
"""Label of Ray's nodes."""

MEMORY_MIB: Final[Mapping[str, int]] = {
    "T4": 15360,
    "A10": 23028,
    "A10G": 23028,
    "L4": 23034,
    "A100-40G": 40960,
    "L40S": 46068,
    "A100-80G": 81920,
    "H100": 81559,
    "RTX-PRO-6000": 97887,
    "H200": 143771,
    "B200": 183359,
}
"""By accelerator, under Ray's names where it has one; its ``A100`` may be either of two, so it stands for none."""

MACHINES: Final[Mapping[str, str]] = {
    # Amazon EC2, up to the dot
    "g4dn": "T4",
    "g5": "A10G",
    "g6": "L4",
    "gr6": "L4",
    "g6e": "L40S",
    "g7e": "RTX-PRO-6000",
    "p4d": "A100-40G",
    "p4de": "A100-80G",
    "p5": "H100",
    "p5e": "H200",
    "p5en": "H200",
    "p6-b200": "B200",
    # Google Compute Engine, up to the number of GPUs or CPUs
    "g2-standard": "L4",
    "a2-highgpu": "A100-40G",
    "a2-megagpu": "A100-40G",
    "a2-ultragpu": "A100-80G",
    "a3-highgpu": "H100",
    "a3-megagpu": "H100",
    "a3-edgegpu": "H100",
    "a3-ultragpu": "H200",
    "a4-highgpu": "B200",
    # Google's accelerators that are attached to a machine or a node pool
    "nvidia-tesla-t4": "T4",
    "nvidia-l4": "L4",
    "nvidia-tesla-a100": "A100-40G",
    "nvidia-a100-80gb": "A100-80G",
    "nvidia-h100-80gb": "H100",
    "nvidia-h100-mega-80gb": "H100",
    "nvidia-h200-141gb": "H200",
    "nvidia-b200": "B200",
}
"""Machine type or accelerator of a cloud -> accelerator."""


def gpu_bytes(accelerator: str | None) -> int | None:
    """Memory of one GPU; None where the accelerator is not known.

    Args:
        accelerator: a key of ``MEMORY_MIB``, or what a cloud calls a machine or an accelerator, e.g. ``g6e.12xlarge``.
    """
    if accelerator is None:
        return None
    if accelerator in MEMORY_MIB:
        return MEMORY_MIB[accelerator] * MIB
    aws, google = accelerator.partition(".")[0], accelerator.rpartition("-")[0]
    found = next((MACHINES[name] for name in (accelerator, aws, google) if name in MACHINES), None)
    return None if found is None else MEMORY_MIB[found] * MIB


def accelerator_of(labels: Mapping[str, str], machine: Mapping[str, Any]) -> str | None:
    """What a node type's GPU is called, as far as its description tells.

    Args:
        labels: Ray's labels of the node.
        machine: ``node_config`` of a Ray cluster file, or a pod's ``spec``.
    """
    attached = [entry.get("acceleratorType", "") for entry in machine.get("guestAccelerators") or ()]
    selected = machine.get("nodeSelector") or {}
    told = (
        labels.get(ACCELERATOR_LABEL),
        *(name.rpartition("/")[2] for name in attached),  # a URL or a bare name
        machine.get("InstanceType"),
        machine.get("machineType"),
        selected.get("cloud.google.com/gke-accelerator"),
        selected.get("node.kubernetes.io/instance-type"),
    )
    names = [str(name) for name in told if name]
    return next((name for name in names if gpu_bytes(name) is not None), names[0] if names else None)
