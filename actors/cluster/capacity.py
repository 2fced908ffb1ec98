"""Whether the connected cluster has room for more actors now, beside those that it runs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import ray
from ray._private.state import available_resources_per_node

from fgaif_ray.cluster.node_types import matches
from fgaif_ray.cluster.resources import ResourceRequest

SMALLEST: Final = 1e-4
"""Ray counts in ten-thousandths; what is less comes of subtracting floats."""


@dataclass(frozen=True, slots=True)
class NodeCapacity:
    """What a node has left, and its labels.

    Example: ``NodeCapacity({"CPU": 6.0, "GPU": 1.5}, gpus=2, labels={"role": "inference"})``
    """

    free: Mapping[str, float]
    """Amounts by the names of resources."""
    gpus: float
    """That it has, used or not."""
    labels: Mapping[str, str]


def has_capacity(requests: Iterable[ResourceRequest]) -> bool:
    """Whether all actors of these requests, each ``count`` times, fit on the nodes that are alive (see ``fit``).

    What is in use counts as taken, nodes that an autoscaler could add do not count.
    """
    free = available_resources_per_node()
    alive = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] in free]
    return fit(
        requests,
        [NodeCapacity(free[node["NodeID"]], node["Resources"].get("GPU", 0.0), node["Labels"]) for node in alive],
    )


def fit(requests: Iterable[ResourceRequest], nodes: Iterable[NodeCapacity]) -> bool:
    """Whether all actors of these requests fit on nodes.

    The largest are placed first, each on the first node that has room: nodes that are only just large enough may be
    said to be too small. Ray tells how much of a node's GPUs is free together, not how much of each: a fraction of one
    is sure to fit where the GPUs have as much free on average. Whole ones are taken to fit where that many are free in
    all, which is wrong where others hold fractions of several GPUs.

    Args:
        requests: each for ``count`` actors.
        nodes: where they may go.
    """
    left = [(dict(node.free), node) for node in nodes]
    actors = [request for request in requests for _ in range(request.count)]
    for actor in sorted(actors, key=lambda request: (request.num_gpus, request.num_cpus), reverse=True):
        wanted = actor.resources()
        for amounts, node in left:
            enough = all(_sure(name, amounts, node, actor) > wanted[name] - SMALLEST for name in wanted)
            if enough and matches(actor.label_selector, node.labels):
                for name, amount in wanted.items():
                    amounts[name] -= amount
                break
        else:
            return False
    return True


def _sure(name: str, free: Mapping[str, float], node: NodeCapacity, actor: ResourceRequest) -> float:
    amount = free.get(name, 0.0)
    return amount / max(node.gpus, 1.0) if name == "GPU" and actor.num_gpus < 1 else amount
