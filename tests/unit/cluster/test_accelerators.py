"""Memory of GPUs by what a cluster's file says about them."""

from pathlib import Path

import pytest

from fgaif_ray.cluster.accelerators import MIB, accelerator_of, gpu_bytes
from fgaif_ray.cluster.node_types import read_cluster_file


@pytest.mark.parametrize(
    ("name", "mib"),
    [
        ("g6e.12xlarge", 46068),
        ("p4de.24xlarge", 81920),
        ("a2-highgpu-4g", 40960),
        ("a3-highgpu-8g", 81559),
        ("g2-standard-48", 23034),
        ("H200", 143771),
        ("nvidia-tesla-t4", 15360),
    ],
)
def test_machines_have_known_gpus(name: str, mib: int) -> None:
    assert gpu_bytes(name) == mib * MIB


@pytest.mark.parametrize("name", [None, "m6i.2xlarge", "A100", "mine"])
def test_what_is_not_known_is_not_guessed(name: str | None) -> None:
    assert gpu_bytes(name) is None


def test_a_label_goes_before_the_machine_and_accelerators_are_found() -> None:
    assert accelerator_of({"ray.io/accelerator-type": "L4"}, {"InstanceType": "g6e.4xlarge"}) == "L4"
    assert accelerator_of({"ray.io/accelerator-type": "A100"}, {"InstanceType": "p4d.24xlarge"}) == "p4d.24xlarge"
    url = "projects/p/zones/z/acceleratorTypes/nvidia-l4"
    assert accelerator_of({}, {"machineType": "n1-standard-8", "guestAccelerators": [{"acceleratorType": url}]}) == (
        "nvidia-l4"
    )
    assert accelerator_of({}, {"nodeSelector": {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}}) == (
        "nvidia-h100-80gb"
    )


@pytest.mark.parametrize(("file", "known"), [("cluster.yaml", 46068), ("deploy/gcp.yaml", 40960)])
def test_shipped_clusters_have_gpus_of_known_memory(repository: Path, file: str, known: int) -> None:
    types = {one.name: one for one in read_cluster_file(repository / file).node_types}
    assert {gpu_bytes(types[name].accelerator) for name in ("inference", "training")} == {known * MIB}
    assert gpu_bytes(types["head"].accelerator) is None
