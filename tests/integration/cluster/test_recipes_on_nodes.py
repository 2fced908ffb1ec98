"""GPU configurations on several nodes: every stage gets the GPUs it asks for, on the nodes whose labels it asks for.

The nodes are those of the shipped `cluster.yaml`, with logical GPUs, and one more with a single GPU; all tests share
them. Models are tiny and compute on the CPU. Other configurations: `tests/proofs/cluster/test_recipe_runs.py`.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.local_nodes import LONGEST_S, LocalNodes
from support.paths import ROOT
from support.placed_actors import PlacedActors
from support.recipe_run import Recipe, run_recipe

from actors.cluster.device import LOGICAL_GPUS

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(LONGEST_S)]

COUNTS = {"data": 1, "inference": 4, "training": 2}
"""Nodes of each type of `cluster.yaml` that the recipe below needs at a time."""
ALONE = "alone"
SECTIONS = {
    "label.extractor": "data",
    "sample.engine": "inference",
    "label.verifier.engine": "inference",
    "rewards": "training",
    "serve": "inference",
    "align": "training",
    "align.rollout.engine": "inference",
    "evaluate.engine": "inference",
}
"""Roles as docs/operations.md gives them to sections of the configuration."""
ACTORS = {
    "Sampler": "inference",
    "FactExtraction": "data",
    "Verifier": "inference",
    "RayTrainWorker": "training",
    "SharedReward": "inference",
    "RolloutWorker": "inference",
    "Generator": "inference",
}
"""Where the actors of those sections belong."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalNodes]:
    """The nodes; they claim many CPUs that are not there, and a process for each would be started at once."""
    types = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    variables = {"RAY_prestart_worker_first_driver": "0", "RAY_num_workers_soft_limit": "1", LOGICAL_GPUS: "1"}
    with LocalNodes(**variables) as nodes:
        for name, count in COUNTS.items():
            resources, labels = types[name]["resources"], types[name]["labels"]
            for _ in range(count):
                nodes.add(labels["role"], resources["CPU"], resources.get("GPU", 0))
        nodes.add(ALONE, 8, 1)
        yield nodes


def run_on(cluster: LocalNodes, recipe: Recipe, roles: dict[str, str], folder: Path) -> PlacedActors:
    """Run all stages, each on the nodes of a role."""
    places = [f"{section}.label_selector.role={role}" for section, role in roles.items()]
    with PlacedActors(cluster.address) as placed:
        run_recipe(recipe, folder, [f"ray.address={cluster.address}", *places]).check()
    return placed


def test_a_recipe_for_several_nodes_uses_each_stage_s_own(cluster: LocalNodes, tmp_path: Path) -> None:
    recipe = Recipe("qwen2.5-vl-7b-8x80gb", "qwen2_5_vl", "qwen3_vl")
    placed = run_on(cluster, recipe, SECTIONS, tmp_path)
    assert {name: {cluster.roles[node] for node in placed.of(name)} for name in ACTORS} == {
        name: {role} for name, role in ACTORS.items()
    }
    trainers = placed.of("RayTrainWorker")
    assert len(trainers) == 8 + 4 and len(set(trainers)) == 2  # four GPUs a node: eight reward trainers fill both
    assert len(set(placed.of("RolloutWorker"))) == 3


def test_a_recipe_for_one_gpu_shares_it(cluster: LocalNodes, tmp_path: Path) -> None:
    """Learner, rollouts and rewards on fractions of it at a time; all else has it alone."""
    placed = run_on(
        cluster, Recipe("qwen3-vl-2b-24gb", "qwen3_vl", "qwen3_vl"), dict.fromkeys(SECTIONS, ALONE), tmp_path
    )
    assert {cluster.roles[node] for name in ACTORS for node in placed.of(name)} == {ALONE}
    assert all(placed.of(name) for name in ACTORS)
