"""Whether a cluster has room for more actors, asked of a real one."""

from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group

from actors.room import has_room
from fgaif_ray.resources import ResourceRequest

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs, a node of 3 CPUs of which 1 is in use, and a node of 2 CPUs for learners."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        cluster.add_node(num_cpus=3, labels={"role": "rewards"})
        cluster.add_node(num_cpus=2, labels={"role": "learner"})
        ray.init(address=cluster.address)
        cluster.wait_for_nodes()
        in_use = placement_group([{"CPU": 1}], bundle_label_selector=[{"role": "rewards"}])
        ray.get(in_use.ready())
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def replicas(count: int, num_cpus: float, **selector: str) -> ResourceRequest:
    return ResourceRequest("Replica", "serve", count, num_cpus, label_selector=selector)


@pytest.mark.parametrize(
    ("requests", "room"),
    [
        ([replicas(2, 2)], True),
        ([replicas(1, 3)], False),  # 1 of the 3 is in use
        ([replicas(3, 2)], False),
        ([replicas(2, 1), replicas(1, 2)], True),  # only if the large one comes first
        ([replicas(1, 2, role="rewards")], True),
        ([replicas(2, 2, role="rewards")], False),
        ([replicas(1, 0, role="nobody")], False),
        ([], True),
    ],
)
def test_what_is_free_on_nodes_with_the_labels_counts(
    cluster: Cluster, requests: list[ResourceRequest], room: bool
) -> None:
    assert has_room(requests) is room
