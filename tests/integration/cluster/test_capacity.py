"""Whether a real cluster has room for more actors."""

from typing import Any

import pytest

from actors.cluster.capacity import has_capacity
from fgaif_ray.cluster.resources import ResourceRequest


@pytest.mark.ray
@pytest.mark.slow
def test_a_real_cluster_is_asked(ray_cluster: dict[str, Any]) -> None:
    def replicas(count: int, num_cpus: float, **selector: str) -> ResourceRequest:
        return ResourceRequest("Replica", "serve", count, num_cpus, 0, label_selector=selector)

    assert has_capacity([replicas(1, 0.1)])
    assert not has_capacity([replicas(1, 9)])  # of eight
    assert not has_capacity([replicas(1, 0.1, role="nobody")])
