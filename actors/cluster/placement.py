"""Placement of the actors of a group."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fgaif_ray.cluster.resources import ResourceRequest


@contextmanager
def spread(request: ResourceRequest) -> Iterator[list[dict[str, Any]]]:
    """Hold a placement group for the time of the block: a bundle for each actor, on as many nodes as there are.

    Where there are too few nodes, several bundles share one; if there is no capacity for all, none is placed until the
    cluster has grown. A bundle keeps its place for an actor that is restarted. If its node is lost, Ray reserves it
    elsewhere, and the actor is restarted there. When the block ends, actors that still run are killed.

    Args:
        request: of the actors; labels go with it.

    Yields:
        ``Actor.options`` keywords for each actor.
    """
    bundle = request.resources()
    if not bundle:  # Ray has no empty bundles, and nothing has to be reserved
        yield [{**request.options(), "scheduling_strategy": "SPREAD"}] * request.count
        return
    selectors = [dict(request.label_selector)] * request.count if request.label_selector else None
    group = placement_group([bundle] * request.count, strategy="SPREAD", bundle_label_selector=selectors)
    # The bundles carry the labels.
    amounts = {name: value for name, value in request.options().items() if name != "label_selector"}
    try:
        yield [
            {**amounts, "scheduling_strategy": PlacementGroupSchedulingStrategy(group, index)}
            for index in range(request.count)
        ]
    finally:
        remove_placement_group(group)
