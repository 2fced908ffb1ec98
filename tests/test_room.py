"""Whether a cluster has room for more actors."""

from typing import Any

import pytest

from actors.room import fit, has_room
from fgaif_ray.resources import ResourceRequest

FREE = {"a": {"CPU": 2.0}, "b": {"CPU": 2.0, "GPU": 1.0}}
LABELS = {"a": {"role": "rewards"}, "b": {"role": "learner"}}


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
        ([replicas(1, 2, role="rewards")], True),
        ([replicas(2, 2, role="rewards")], False),
        ([replicas(1, 0, role="nobody")], False),
    ],
)
def test_actors_go_where_labels_and_free_resources_allow(requests: list[ResourceRequest], room: bool) -> None:
    assert fit(requests, FREE, LABELS) is room


@pytest.mark.ray
@pytest.mark.slow
def test_a_real_cluster_is_asked(ray_cluster: dict[str, Any]) -> None:
    assert has_room([replicas(1, 0.1)])
    assert not has_room([replicas(1, 9)])  # of eight
    assert not has_room([replicas(1, 0.1, role="nobody")])
