"""Whether a cluster can ever run a configuration, found out before anything is submitted.

Every actor that a stage starts (``fgaif_ray.cluster.resources``) needs a node type (``fgaif_ray.cluster.node_types``)
with its labels and enough of every resource, and those that a stage cannot do without must fit side by side into the
nodes that the cluster may grow to.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from fgaif_ray.cluster.node_types import ClusterFile, NodeType, matches
from fgaif_ray.cluster.resources import ALIGN_STAGE, SERVE_STAGE, ResourceRequest, stage_requests
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.tables import table_lines

TITLES: Final = ("stage", "actor", "count", "each asks for", "node type")


@dataclass(frozen=True, slots=True)
class Assignment:
    """A row of a plan."""

    stage: str
    request: ResourceRequest
    node_types: Mapping[str, int]
    """Actors by the type of the node that takes them; actors that wait for room are in none."""


@dataclass(slots=True)
class _Node:
    type: NodeType
    left: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.left = dict(self.type.resources)

    def take(self, request: ResourceRequest) -> bool:
        """Whether the node has room, which is then taken."""
        asked = request.resources()
        if not _fits(request, self.type, self.left):
            return False
        for name, amount in asked.items():
            self.left[name] = round(self.left[name] - amount, 4)  # Ray counts in ten-thousandths
        return True


def plan_cluster(config: Config, cluster: ClusterFile, stages: Collection[str] = ()) -> list[Assignment]:
    """Find a node type for everything that stages of the pipeline start.

    Args:
        config: the configuration.
        cluster: what it is to run on.
        stages: names of ``stage_requests``; none stands for all.

    Raises:
        UserError: a stage could never start; one sentence names the stage, what it asks for and what to change.
    """
    known = stage_requests(config)
    plan: list[Assignment] = []
    for stage, requests in known.items():
        if stages and stage not in stages:
            continue
        beside = known.get(SERVE_STAGE, []) if stage == ALIGN_STAGE else []
        for request in (*beside, *requests):
            _require_a_type(stage, request, cluster)
        placed = _place(stage, [*beside, *requests], cluster)
        plan += [Assignment(stage, request, placed[len(beside) + index]) for index, request in enumerate(requests)]
    return plan


def _fits(request: ResourceRequest, node_type: NodeType, free: Mapping[str, float]) -> bool:
    return matches(request.label_selector, node_type.labels) and all(
        free.get(name, 0) >= amount for name, amount in request.resources().items()
    )


def _require_a_type(stage: str, request: ResourceRequest, cluster: ClusterFile) -> None:
    usable = [node_type for node_type in cluster.node_types if node_type.most > 0]
    if any(_fits(request, node_type, node_type.resources) for node_type in usable):
        return
    labelled = [node_type for node_type in usable if matches(request.label_selector, node_type.labels)]
    key = f"{request.section}.label_selector" if not labelled else f"what {request.section} asks for"
    lacking = "no node type has these labels" if not labelled else f"{_sizes(labelled)} at most"
    raise UserError(
        f"{stage}: no node of {cluster.name} can ever take a {request.actor}, which asks for {describe(request)} "
        f"({lacking}): change {key}, or add a node type."
    )


def _sizes(node_types: Iterable[NodeType]) -> str:
    return "; ".join(
        f"{one.name} has " + ", ".join(f"{amount:g} {name}" for name, amount in one.resources.items())
        for one in node_types
    )


def _place(stage: str, requests: Sequence[ResourceRequest], cluster: ClusterFile) -> list[Counter[str]]:
    """Node types of every request; fills nodes the way Ray's autoscaler does, the largest requests first."""
    # Those that are needed come before the rest of a pool, and whoever can go to few places before the others.
    order = sorted(range(len(requests)), key=lambda index: _difficulty(requests[index], cluster))
    needed = [(index, 1 if requests[index].pool else requests[index].count) for index in order]
    extra = [(index, requests[index].count - 1) for index in order if requests[index].pool]
    nodes = [_Node(one) for one in cluster.node_types if one.name == cluster.head]
    placed: list[Counter[str]] = [Counter() for _ in requests]
    for must, group in ((True, needed), (False, extra)):
        for index, count in group:
            for number in range(count):
                node = _node_for(requests[index], nodes, cluster)
                if node is not None:
                    placed[index][node.type.name] += 1
                elif must:
                    raise UserError(_does_not_fit(stage, requests, index, number, cluster))
                else:
                    break
    return placed


def _difficulty(request: ResourceRequest, cluster: ClusterFile) -> tuple[float, ...]:
    types = sum(_fits(request, node_type, node_type.resources) for node_type in cluster.node_types)
    return (-request.num_gpus, types, -request.num_cpus)


def _node_for(request: ResourceRequest, nodes: list[_Node], cluster: ClusterFile) -> _Node | None:
    """A node with room, an added one if need be; one without GPUs for an actor that asks for none."""
    for node in sorted(nodes, key=lambda node: _waste(request, node.type)):
        if node.take(request):
            return node
    counts = Counter(node.type.name for node in nodes)
    if len(nodes) > cluster.max_workers:  # the head is among them
        return None
    for node_type in sorted(cluster.node_types, key=lambda node_type: _waste(request, node_type)):
        if counts[node_type.name] < node_type.most and _fits(request, node_type, node_type.resources):
            nodes.append(_Node(node_type))
            nodes[-1].take(request)
            return nodes[-1]
    return None


def _waste(request: ResourceRequest, node_type: NodeType) -> tuple[bool, float, float]:
    gpus = node_type.resources.get("GPU", 0)
    return (request.num_gpus == 0 and gpus > 0, gpus, node_type.resources.get("CPU", 0))


def _does_not_fit(
    stage: str, requests: Sequence[ResourceRequest], index: int, number: int, cluster: ClusterFile
) -> str:
    request = requests[index]
    together = " and ".join(
        f"{1 if one.pool else one.count} {one.actor} ({describe(one)})" for one in requests if one.count
    )
    return (
        f"{stage} needs {together} at the same time, and beside the others {cluster.name} has room for {number} "
        f"{request.actor} only: raise max_workers of a node type and of the cluster, or lower what {request.section} "
        "asks for."
    )


def describe(request: ResourceRequest) -> str:
    """What one actor asks for, e.g. ``4 CPU, 1 GPU, role=inference``."""
    amounts = [f"{amount:g} {name}" for name, amount in request.resources().items()]
    labels = [f"{key}={condition}" for key, condition in request.label_selector.items()]
    return ", ".join([*amounts, *labels]) or "nothing"


def plan_table(plan: Sequence[Assignment]) -> str:
    """The plan as text for a terminal."""
    return "\n".join(table_lines([TITLES, *(_row(assignment) for assignment in plan)], rule=True))


def _row(assignment: Assignment) -> tuple[str, ...]:
    request, placed = assignment.request, assignment.node_types
    most = request.most or request.count
    count = f"{request.count} to {most}" if most > request.count else str(request.count)
    types = ", ".join(name if len(placed) == 1 else f"{name} ({number})" for name, number in placed.items())
    waiting = request.count - sum(placed.values())
    return (
        assignment.stage,
        request.actor,
        count,
        describe(request),
        f"{types}; {waiting} wait for room" if waiting else types,
    )


def plan_notes(config: Config, cluster: ClusterFile) -> Iterator[str]:
    """What can be scheduled and will still go wrong where nodes are machines of their own, a sentence each."""
    if cluster.placeholders:
        yield f"{cluster.name} still has placeholders: fill in {', '.join(cluster.placeholders)}."
    if "://" not in config.run.dir and not config.run.dir.startswith("/"):
        yield (
            f"run.dir={config.run.dir} lies in the folder of the submitted job, which nodes do not share and which "
            "ends with the cluster: set it to object storage (s3://...) or to a shared mount."
        )
    path = config.data.path
    if path is not None and config.data.source != "dataset" and "://" not in path and not path.startswith("/"):
        yield f"data.path={path} is not uploaded with a job: set it to object storage or to a shared mount."
    head = next(node_type for node_type in cluster.node_types if node_type.name == cluster.head)
    if config.label.extractor.serve_model is not None and head.resources.get("CPU", 0) == 0:
        yield (
            "label.extractor.serve_model is served on the loopback of the driver's machine, where extraction workers "
            "on other machines do not reach it: set label.extractor.base_url to an endpoint instead."
        )
