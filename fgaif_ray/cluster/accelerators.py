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

# Ray's name for an accelerator, where it has one (its A100 may be either of two, so it stands for none); machine types
# of Amazon EC2 up to the dot and of Google Compute Engine up to the number of GPUs or CPUs; Google's accelerators that
# are attached to a machine or a node pool.
_MEMORY: Final = (
    (15360, "T4 g4dn nvidia-tesla-t4"),
    (23028, "A10 A10G g5"),
    (23034, "L4 g6 gr6 g2-standard nvidia-l4"),
    (40960, "A100-40G p4d a2-highgpu a2-megagpu nvidia-tesla-a100"),
    (46068, "L40S g6e"),
    (81920, "A100-80G p4de a2-ultragpu nvidia-a100-80gb"),
    (81559, "H100 p5 a3-highgpu a3-megagpu a3-edgegpu nvidia-h100-80gb nvidia-h100-mega-80gb"),
    (97887, "RTX-PRO-6000 g7e"),
    (143771, "H200 p5e p5en a3-ultragpu nvidia-h200-141gb"),
    (183359, "B200 p6-b200 a4-highgpu nvidia-b200"),
)
_MIB_OF: Final = {name: mib for mib, names in _MEMORY for name in names.split()}


def gpu_bytes(accelerator: str | None) -> int | None:
    """Memory of one GPU; None where the accelerator is not known.

    Args:
        accelerator: its name, e.g. ``H100``, or what a cloud calls a machine or an accelerator, e.g. ``g6e.12xlarge``.
    """
    name = accelerator or ""
    known = (name, name.partition(".")[0], name.rpartition("-")[0])
    return next((_MIB_OF[one] * MIB for one in known if one in _MIB_OF), None)


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
