"""Whether a cluster has room for more actors."""

import pytest

from actors.cluster.capacity import NodeCapacity, fit
from fgaif_ray.cluster.resources import ResourceRequest

NODES = [
    NodeCapacity({"CPU": 2.0}, 0, {"role": "rewards"}),
    NodeCapacity({"CPU": 2.0, "GPU": 1.0}, 1, {"role": "learner"}),
]


def replicas(count: int, num_cpus: float, num_gpus: float = 0, **selector: str) -> ResourceRequest:
    return ResourceRequest("Replica", "serve", count, num_cpus, num_gpus, label_selector=selector)


@pytest.mark.parametrize(
    ("requests", "room"),
    [
        ([], True),
        ([replicas(2, 2)], True),
        ([replicas(1, 3)], False),  # there are 4, but not on one node
        ([replicas(3, 2)], False),
        ([replicas(2, 1), replicas(1, 2)], True),  # only if the large one comes first
        ([replicas(2, 0.5, 0.5)], True),
        ([replicas(3, 0.5, 0.5)], False),
        ([replicas(10, 0, 0.1)], True),  # 1 less ten times 0.1 is not 0 in floats
        ([replicas(1, 2, role="rewards")], True),
        ([replicas(2, 2, role="rewards")], False),
        ([replicas(1, 0, role="nobody")], False),
    ],
)
def test_actors_go_where_labels_and_free_resources_allow(requests: list[ResourceRequest], room: bool) -> None:
    assert fit(requests, NODES) is room


@pytest.mark.parametrize(
    ("requests", "room"),
    [
        ([replicas(1, 0, 0.2)], True),  # wherever the 0.4 are, one has 0.2
        ([replicas(1, 0, 0.3)], False),  # 0.2 on each would do for none
        ([replicas(2, 0, 0.15)], False),  # the second might find 0.125 on each
        ([replicas(2, 0, 0.1)], True),
        ([replicas(1, 0, 1)], False),
    ],
)
def test_a_fraction_needs_a_single_gpu(requests: list[ResourceRequest], room: bool) -> None:
    assert fit(requests, [NodeCapacity({"CPU": 2.0, "GPU": 0.4}, 2, {})]) is room
