"""Runs of an experiment side by side on nodes with logical GPUs, each with the GPU that the other one leaves."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.local_nodes import LONGEST_S, LocalNodes
from support.placed_actors import PlacedActors
from support.recipe_run import Recipe, run_recipe

from actors.cluster.device import LOGICAL_GPUS
from fgaif_ray.experiments.run_queue import LOG_FILE

pytestmark = [pytest.mark.proof, pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(LONGEST_S)]

RECIPE = Recipe("qwen3-vl-2b-24gb", "qwen3_vl", "qwen3_vl")
"""It puts every stage on one GPU, learner, rollouts and rewards on fractions of it."""
JOB = ("experiment", "noise", "--variants", "none", "--seeds", "0,1", "--parallel", "2")
"""Two seeds have no stage in common: neither waits for the other."""


@pytest.fixture
def cluster() -> Iterator[LocalNodes]:
    """Two nodes with a GPU each."""
    variables = {"RAY_prestart_worker_first_driver": "0", "RAY_num_workers_soft_limit": "1", LOGICAL_GPUS: "1"}
    with LocalNodes(**variables) as nodes:
        for role in ("first", "second"):
            nodes.add(role, 8, 1)
        yield nodes


def test_parallel_runs_share_the_nodes(cluster: LocalNodes, tmp_path: Path) -> None:
    with PlacedActors(cluster.address) as placed:
        finished = run_recipe(RECIPE, tmp_path, [f"ray.address={cluster.address}"], JOB)
    folder = finished.folder / "noise"
    logs = {path.parent.name: path.read_text() for path in folder.glob(f"none/*/{LOG_FILE}")}
    assert finished.code == 0, finished.output[-2000:] + "".join(log[-3000:] for log in logs.values())
    starts = [finished.output.index(f"== none/seed-{seed}: from") for seed in (0, 1)]
    assert max(starts) < finished.output.index(": done\n")  # the second one began before the first one ended
    for actor in ("Sampler", "RolloutWorker", "RayTrainWorker", "Generator"):
        assert {cluster.roles[node] for node in placed.of(actor)} == {"first", "second"}, actor
    [reference] = json.loads((folder / "results.json").read_text())["variants"]
    assert reference["figures"]["coverage"]["over"] == "seeds"
