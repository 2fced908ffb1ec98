"""The option `--plan` of jobs: what they ask a cluster for, and whether the cluster can ever give it."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fgaif_ray.config import Config
from fgaif_ray.progress import say
from jobs.cli import Mode

if TYPE_CHECKING:
    from fgaif_ray.node_types import ClusterFile


def plan_mode(*stages: str) -> Mode:
    """The option of a job that runs these stages, by the names of ``fgaif_ray.resources``; none stands for all."""

    def show(config: Config, _given: bool, cluster: str | None) -> None:
        show_plan(config, cluster, stages)

    return Mode(
        "--plan",
        {"action": "store_true", "help": "show what is asked of a cluster and which nodes take it; run nothing"},
        show,
        {
            "--cluster": {
                "metavar": "FILE",
                "help": "cluster file (cluster.yaml, or a KubeRay manifest) to plan for; without it, this machine",
            }
        },
    )


def show_plan(config: Config, cluster: str | None, stages: Sequence[str] = ()) -> None:
    """Print a table of all actors and the node types that take them; starts nothing.

    Args:
        config: the configuration.
        cluster: Ray cluster file or KubeRay manifest; None is this machine.
        stages: stages to plan; none stands for all.

    Raises:
        UserError: the file is wrong, or a stage could never start on such a cluster.
    """
    from fgaif_ray.cluster_plan import plan_cluster, plan_notes, plan_table
    from fgaif_ray.node_types import read_cluster_file

    described = _this_machine(config) if cluster is None else read_cluster_file(cluster)
    if cluster is not None and described.launcher == "ray":
        from actors.cluster_config import check_cluster_file

        check_cluster_file(cluster)
    say(plan_table(plan_cluster(config, described, stages)))
    for note in plan_notes(config, described) if cluster is not None else ():
        say(f"note: {note}")


def _this_machine(config: Config) -> "ClusterFile":
    """The cluster that a job starts by itself."""
    import torch

    from fgaif_ray.node_types import ClusterFile, NodeType

    resources = {"CPU": config.ray.num_cpus or os.cpu_count() or 1, "GPU": torch.cuda.device_count()}
    here = NodeType("this machine", resources, 1)
    return ClusterFile(here.name, (here,), 0, here.name)
