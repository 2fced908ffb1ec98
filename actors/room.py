"""Whether the connected cluster has room for more actors now, beside those that it runs."""

from collections.abc import Iterable, Mapping

import ray
from ray._private.state import available_resources_per_node

from fgaif_ray.node_types import matches
from fgaif_ray.resources import ResourceRequest


def has_room(requests: Iterable[ResourceRequest]) -> bool:
    """Whether all actors of these requests, each ``count`` times, fit on the nodes that are alive (see ``fit``).

    What is in use counts as taken, nodes that an autoscaler could add do not count.
    """
    labels = {node["NodeID"]: node["Labels"] for node in ray.nodes() if node["Alive"]}
    free = available_resources_per_node()
    return fit(requests, {node: free[node] for node in labels if node in free}, labels)


def fit(
    requests: Iterable[ResourceRequest],
    free: Mapping[str, Mapping[str, float]],
    labels: Mapping[str, Mapping[str, str]],
) -> bool:
    """Whether all actors of these requests fit on nodes.

    The largest are placed first, each on the first node that has room: nodes that are only just large enough may be
    said to be too small.

    Args:
        requests: each for ``count`` actors.
        free: node -> amounts by the names of resources.
        labels: node -> its labels.
    """
    left = {node: dict(amounts) for node, amounts in free.items()}
    actors = [request for request in requests for _ in range(request.count)]
    for actor in sorted(actors, key=lambda request: (request.num_gpus, request.num_cpus), reverse=True):
        wanted = actor.resources()
        for node, amounts in left.items():
            enough = all(amounts.get(name, 0.0) >= amount for name, amount in wanted.items())
            if enough and matches(actor.label_selector, labels[node]):
                for name, amount in wanted.items():
                    amounts[name] -= amount
                break
        else:
            return False
    return True
