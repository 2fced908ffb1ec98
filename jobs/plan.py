"""The option `--plan` of jobs: what they ask a cluster for, whether it can ever give it, and what lies on its GPUs."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from fgaif_ray.config import Config
from fgaif_ray.progress import say
from jobs.cli import Mode

if TYPE_CHECKING:
    from fgaif_ray.cluster.node_types import ClusterFile

GIB: Final = 1 << 30


def plan_mode(*stages: str) -> Mode:
    """The option of a job that runs these stages, by the names of ``cluster.resources``; none stands for all."""

    def show(config: Config, _given: bool, cluster: str | None, gpu_memory: float | None) -> None:
        show_plan(config, cluster, stages, gpu_memory)

    return Mode(
        "--plan",
        {"action": "store_true", "help": "show which nodes take what, and what lies on their GPUs; run nothing"},
        show,
        {
            "--cluster": {
                "metavar": "FILE",
                "help": "cluster file (cluster.yaml, or a KubeRay manifest) to plan for; without it, this machine",
            },
            "--gpu-memory": {
                "type": _positive,
                "metavar": "GIB",
                "help": "memory of a GPU to plan for; without it, what the node types or this machine's GPUs have",
            },
        },
    )


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise ValueError("not positive")
    return value


def show_plan(
    config: Config, cluster: str | None, stages: Sequence[str] = (), gpu_memory_gib: float | None = None
) -> None:
    """Print a table of all actors and the node types that take them, and one of their GPUs' memory; starts nothing.

    Args:
        config: the configuration.
        cluster: Ray cluster file or KubeRay manifest; None is this machine.
        stages: stages to plan; none stands for all.
        gpu_memory_gib: of every GPU; None takes what is known of the node types' GPUs or this machine's.

    Raises:
        UserError: the file is wrong, a stage could never start on such a cluster, or weights alone fill its GPUs.
    """
    from fgaif_ray.cluster.memory_plan import plan_memory
    from fgaif_ray.cluster.node_types import read_cluster_file
    from fgaif_ray.cluster.plan import plan_cluster, plan_notes, plan_table

    described = _this_machine(config) if cluster is None else read_cluster_file(cluster)
    if cluster is not None and described.launcher == "ray":
        from actors.cluster.cluster_file import check_cluster_file

        check_cluster_file(cluster)
    plan = plan_cluster(config, described, stages)
    say(plan_table(plan))
    for note in plan_notes(config, described) if cluster is not None else ():
        say(f"note: {note}")
    gpu_memory = _smallest_gpu() if cluster is None else None
    if gpu_memory_gib is not None:
        gpu_memory = int(gpu_memory_gib * GIB)
    memory = plan_memory(config, described, plan, gpu_memory)
    if memory.holdings:
        say("\nMemory for the longest responses that the configuration allows, GiB:\n" + memory.table())
    for warning in memory.warnings():
        say(f"warning: {warning}")
    memory.check()


def _smallest_gpu() -> int | None:
    """Bytes of the smallest of this machine's GPUs."""
    import torch

    count = torch.cuda.device_count()
    return min((torch.cuda.get_device_properties(index).total_memory for index in range(count)), default=None)


def _this_machine(config: Config) -> "ClusterFile":
    """The cluster that a job starts by itself."""
    import torch

    from fgaif_ray.cluster.node_types import ClusterFile, NodeType

    resources = {"CPU": config.ray.num_cpus or os.cpu_count() or 1, "GPU": torch.cuda.device_count()}
    here = NodeType("this machine", resources, 1)
    return ClusterFile(here.name, (here,), 0, here.name)
