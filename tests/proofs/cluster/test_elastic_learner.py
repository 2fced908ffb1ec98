"""A learner that is given between one and two workers: it goes on without a node that is lost, and takes in a new one.

Workers are counted by a custom resource, as where other nodes have processors too.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.local_nodes import LONGEST_S, LocalNodes, NodeJob
from support.placed_actors import PlacedActors
from support.preference_data import preference_run

from fgaif_ray.rl.run_log import read_lines

pytestmark = [pytest.mark.proof, pytest.mark.ray, pytest.mark.timeout(LONGEST_S)]

STEPS = 600
SETTINGS = (
    "align.algorithm=c-dpo",
    f"align.steps={STEPS}",
    "align.num_workers=[1, 2]",
    "align.resize_every_s=5",
    "align.worker_resource=learner",
    "align.cpus_per_worker=0.5",
    "align.threads=1",
    "align.label_selector.role=training",
    "align.checkpoint_every=20",
    "align.lora.rank=4",
    "align.dpo.pairs_per_step=6",
    "align.dpo.micro_batch_size=2",
    "align.dpo.learning_rate=0.0001",
)
BETWEEN = 60
"""Steps that a part of the run makes before it is disturbed."""


@pytest.fixture
def nodes() -> Iterator[LocalNodes]:
    with LocalNodes() as started:
        started.add("data", 4)  # room for workers by its processors, where their label keeps them away
        yield started


def steps(folder: Path) -> int:
    rows = read_lines(str(folder / "run" / "policy.partial" / "metrics.jsonl"))
    return max((row["step"] for row in rows), default=0)


def test_an_elastic_learner_shrinks_with_its_nodes_and_grows_again(nodes: LocalNodes, tmp_path: Path) -> None:
    undisturbed = tmp_path / "undisturbed"
    config = preference_run(tmp_path / "elastic", *SETTINGS)
    first, second = (nodes.add("training", 1, learner=1) for _ in range(2))
    folder = tmp_path / "elastic"
    with PlacedActors(nodes.address) as placed, NodeJob("align", config, nodes.address, folder) as job:
        job.wait_for(lambda: steps(folder) >= BETWEEN)
        assert set(placed.of("RayTrainWorker")) == {first.node_id, second.node_id}
        nodes.lose(second)
        alone = len(placed.of("RayTrainWorker")) + 1
        job.wait_for(lambda: len(placed.of("RayTrainWorker")) >= alone)
        reached = steps(folder)
        job.wait_for(lambda: steps(folder) >= reached + BETWEEN)
        assert len(placed.of("RayTrainWorker")) == alone, "one worker went on"
        third = nodes.add("training", 1, learner=1)
        job.wait_for(lambda: third.node_id in placed.of("RayTrainWorker"))
        output = job.finish()
    assert re.search(
        r"^align: the learner has failed: .*it starts again from the last checkpoint", output, re.MULTILINE
    )
    assert [row["step"] for row in read_lines(str(folder / "run/policy/metrics.jsonl"))] == list(range(1, STEPS + 1))

    fixed = preference_run(undisturbed, *SETTINGS, "align.num_workers=1")
    with NodeJob("align", fixed, nodes.address, undisturbed) as job:
        job.finish()
    adapters = [load_file(path / "run/policy/adapter_model.safetensors") for path in (folder, undisturbed)]
    for name, weights in adapters[1].items():
        torch.testing.assert_close(adapters[0][name], weights, rtol=1e-2, atol=1e-4)
