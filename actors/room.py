"""Whether the connected cluster has room for more actors now, beside those that it runs."""

from collections.abc import Iterable

import ray
from ray._private.state import available_resources_per_node

from fgaif_ray.node_types import matches
from fgaif_ray.resources import ResourceRequest


def has_room(requests: Iterable[ResourceRequest]) -> bool:
    """Whether all actors of these requests, each ``count`` times, fit on the nodes that are alive.

    What is in use counts as taken, nodes that an autoscaler could add do not count. The largest requests are placed
    first, each on the first node that has room: a cluster that is only just large enough may be said to be too small.
    """
    labels = {node["NodeID"]: node["Labels"] for node in ray.nodes() if node["Alive"]}
    free = {node: dict(resources) for node, resources in available_resources_per_node().items() if node in labels}
    actors = [request for request in requests for _ in range(request.count)]
    for actor in sorted(actors, key=lambda request: (request.num_gpus, request.num_cpus), reverse=True):
        wanted = actor.resources()
        for node, resources in free.items():
            fits = all(resources.get(name, 0.0) >= amount for name, amount in wanted.items())
            if fits and matches(actor.label_selector, labels[node]):
                for name, amount in wanted.items():
                    resources[name] -= amount
                break
        else:
            return False
    return True
