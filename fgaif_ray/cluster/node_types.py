"""The node types of a cluster, as its file describes them: a Ray cluster file, or KubeRay's manifests."""

import functools
import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from fgaif_ray.cluster.accelerators import accelerator_of
from fgaif_ray.errors import UserError

PLACEHOLDER: Final = "REPLACE-ME"
"""Stands in shipped cluster files where only their user knows the value."""
GPU_LIMIT: Final = "nvidia.com/gpu"
KUBERAY_CLUSTERS: Final = {
    "RayCluster": ("spec",),
    "RayJob": ("spec", "rayClusterSpec"),
    "RayService": ("spec", "rayClusterConfig"),
}
"""Where the manifests of each kind describe the cluster."""


@dataclass(frozen=True, slots=True)
class NodeType:
    """A kind of node and how many of it there may be.

    Example: ``NodeType("inference_gpu", {"CPU": 16, "GPU": 1}, 8, {"role": "inference"})``
    """

    name: str
    resources: Mapping[str, float]
    """Amounts by the names that Ray gives resources."""
    most: int
    """Nodes of this type that there may be."""
    labels: Mapping[str, str] = field(default_factory=dict)
    accelerator: str | None = None
    """What its GPU, or the machine that has it, is called (``cluster.accelerators``), as far as it is known."""


@dataclass(frozen=True, slots=True)
class ClusterFile:
    """What is read of a cluster's file."""

    name: str
    """Of the file, for messages."""
    node_types: tuple[NodeType, ...]
    max_workers: int
    """Nodes beside the head."""
    head: str
    """Name of the head's node type."""
    launcher: Literal["ray", "kuberay", "none"] = "none"
    """What reads the file."""
    placeholders: tuple[str, ...] = ()
    """Keys whose values are still to be filled in; of equal ones, as aliases make them, the first."""


def read_cluster_file(path: str | Path) -> ClusterFile:
    """Read a Ray cluster file (``ray up``), or a YAML file with one KubeRay cluster, job or service.

    Raises:
        UserError: there is no such file, it describes no cluster, or a node type does not say its resources.
    """
    try:
        documents = list(yaml.safe_load_all(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"Cannot read the cluster file {path}: {error.strerror}; give one with --cluster.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {str(error).splitlines()[0]}.") from error
    try:
        for document in documents:
            if isinstance(document, dict):
                if "available_node_types" in document:
                    return _ray_cluster(str(path), document)
                if (place := KUBERAY_CLUSTERS.get(document.get("kind", ""))) is not None:
                    return _kuberay_cluster(str(path), functools.reduce(operator.getitem, place, document))
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not laid out as a cluster file ({type(error).__name__}: {error}).") from error
    raise UserError(f"{path} describes no cluster: it has neither available_node_types nor a RayCluster.")


def _ray_cluster(path: str, tree: Mapping[str, Any]) -> ClusterFile:
    head = tree.get("head_node_type")
    types: Mapping[str, Any] = tree["available_node_types"]
    if head not in types:
        raise UserError(f"{path}: head_node_type has to be one of {', '.join(types)}.")
    found = []
    for name, entry in types.items():
        resources = entry.get("resources") or {}
        if "CPU" not in resources:
            raise UserError(f"{path}: write how many CPUs a node of type {name} has into its resources.")
        most = 1 if name == head else int(entry.get("max_workers", tree.get("max_workers", 0)))
        labels = entry.get("labels") or {}
        found.append(NodeType(name, resources, most, labels, accelerator_of(labels, entry.get("node_config") or {})))
    workers = int(tree.get("max_workers", 2))  # Ray's default
    return ClusterFile(path, tuple(found), workers, str(head), "ray", _unfilled(tree))


def _kuberay_cluster(path: str, spec: Mapping[str, Any]) -> ClusterFile:
    found = [NodeType("head", _pod_resources(path, "head", spec["headGroupSpec"]), 1)]
    for group in spec.get("workerGroupSpecs", ()):
        name = group["groupName"]
        most = int(group.get("maxReplicas", group.get("replicas", 0))) * int(group.get("numOfHosts", 1))
        labels = group.get("labels") or {}
        accelerator = accelerator_of(labels, group["template"]["spec"])
        found.append(NodeType(name, _pod_resources(path, name, group), most, labels, accelerator))
    workers = sum(node_type.most for node_type in found[1:])
    return ClusterFile(path, tuple(found), workers, "head", "kuberay", _unfilled(spec))


def _pod_resources(path: str, name: str, group: Mapping[str, Any]) -> dict[str, float]:
    """What KubeRay tells Ray of a pod: its limits, or what ``rayStartParams`` says instead."""
    container = group["template"]["spec"]["containers"][0]
    limits = container.get("resources", {}).get("limits", {})
    started = group.get("rayStartParams") or {}
    cpus = started.get("num-cpus", limits.get("cpu", container.get("resources", {}).get("requests", {}).get("cpu")))
    if cpus is None:
        raise UserError(f"{path}: write how many CPUs a pod of group {name} has into its resources.")
    gpus = started.get("num-gpus", limits.get(GPU_LIMIT, 0))
    return {"CPU": float(_cores(str(cpus))), "GPU": float(gpus)}


def _cores(quantity: str) -> int:
    """Whole CPUs of a Kubernetes quantity, rounded up as KubeRay does."""
    milli = float(quantity.removesuffix("m")) * (1 if quantity.endswith("m") else 1000)
    return -int(-milli // 1000)


def _unfilled(tree: Mapping[str, Any]) -> tuple[str, ...]:
    first: dict[tuple[str, str], str] = {}
    for place, value in _placeholders(tree):
        first.setdefault((place.rsplit(".", 1)[-1], value), place)
    return tuple(first.values())


def _placeholders(tree: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Keys and values."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _placeholders(value, f"{place}.{key}" if place else str(key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from _placeholders(value, f"{place}[{index}]")
    elif isinstance(tree, str) and PLACEHOLDER in tree:
        yield place, tree


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels has what Ray's label selector asks for.

    A condition is a value, ``in(a, b)``, or one of both with ``!`` before it, which a node without the label meets too.
    """
    return all(_meets(condition, labels.get(key)) for key, condition in selector.items())


def _meets(condition: str, value: str | None) -> bool:
    wanted = condition.removeprefix("!")
    listed = re.fullmatch(r"in\((.*)\)", wanted)
    values = {part.strip() for part in listed[1].split(",")} if listed else {wanted}
    return (value in values) != condition.startswith("!")
