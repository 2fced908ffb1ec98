"""Show what a run asks a cluster for, whether the cluster can ever give it, and what lies on its GPUs; runs nothing.

Without --cluster the plan is for this machine; without the names of stages it is for all of them.

Examples:
    fgaif plan --config configs/shapes.yaml
    fgaif plan --config my.yaml --cluster cluster.yaml
    fgaif plan label align --config my.yaml --gpu-memory 80
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.progress import say
from jobs.cli import ConfigOption, SetOption, main, read_config

if TYPE_CHECKING:
    from fgaif_ray.cluster.node_types import ClusterFile

GIB: Final = 1 << 30
STAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "sample": ("sample",),
    "label": ("label", "label, second"),
    "train-rewards": ("train_rewards",),
    "serve-rewards": ("serve_rewards",),
    "align": ("serve_rewards", "align"),
    "evaluate": ("evaluate",),
}
"""Command -> what it runs at a time, by the names of ``cluster.resources``."""


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

    gpus = config.ray.logical_gpus or torch.cuda.device_count()
    resources = {"CPU": config.ray.num_cpus or os.cpu_count() or 1, "GPU": gpus}
    here = NodeType("this machine", resources, 1)
    return ClusterFile(here.name, (here,), 0, here.name)


def _stages_of(commands: Sequence[str]) -> list[str]:
    """Names of ``cluster.resources``, each once.

    Raises:
        UserError: there is no such command, or it has no plan.
    """
    names: list[str] = []
    for command in commands:
        found = STAGES.get(command.replace("_", "-"))
        if found is None:
            raise UserError(f"{command} is not a stage that can be planned: give some of {', '.join(STAGES)}, or none.")
        names += [name for name in found if name not in names]
    return names


def command(
    config: ConfigOption,
    stages: Annotated[
        list[str] | None, typer.Argument(metavar="STAGE", help=", ".join(STAGES), show_default=False)
    ] = None,
    overrides: SetOption = None,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="cluster file (cluster.yaml, or a KubeRay manifest) to plan for"),
    ] = None,
    gpu_memory: Annotated[
        float | None,
        typer.Option(metavar="GIB", help="memory of a GPU; else what the node types or this machine's GPUs have"),
    ] = None,
) -> None:
    """What `fgaif plan` does."""
    if gpu_memory is not None and not gpu_memory > 0:
        raise UserError(f"--gpu-memory takes a number of GiB above 0, not {gpu_memory:g}.")
    show_plan(read_config(config, overrides), cluster, _stages_of(stages or ()), gpu_memory)


if __name__ == "__main__":
    sys.exit(main("plan"))
