"""Ray's own autoscaler with the node types of the shipped `cluster.yaml`, as raylets on this machine."""

import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.fake_openai import FakeOpenAI
from support.label_helpers import KEY_VARIABLE, answer_by_rule, make_config, write_responses
from support.local_autoscaler import LONGEST_S, LocalAutoscaler
from support.local_nodes import NodeJob
from support.lost_nodes import Caller
from support.reward_helpers import save_reward_models, service_config
from support.reward_training import feedback_rows, job_config, publish_feedback

from fgaif_ray.config import Config
from fgaif_ray.storage import read_manifest

pytestmark = [pytest.mark.proof, pytest.mark.ray, pytest.mark.timeout(2 * LONGEST_S)]


@pytest.fixture(scope="module")
def cluster(repository: Path) -> Iterator[LocalAutoscaler]:
    with LocalAutoscaler(repository / "cluster.yaml") as started:
        yield started


def placed(config: Config, **roles: str) -> Config:
    """The configuration with the labels that docs/operations.md gives; keys are sections, with ``__`` for dots."""
    tree = config.model_dump(mode="json")
    for section, role in roles.items():
        place: dict[str, Any] = tree
        for name in section.split("__"):
            place = place[name]
        place["label_selector"] = {"role": role}
    return Config.model_validate(tree)


class Seen(threading.Thread):
    """Notes which nodes were up at a time."""

    def __init__(self, cluster: LocalAutoscaler) -> None:
        super().__init__(daemon=True)
        self.roles: set[str] = set()
        self.most = 0
        self.done = threading.Event()
        self._cluster = cluster

    def run(self) -> None:
        while not self.done.wait(0.2):
            up = self._cluster.roles()
            self.roles |= set(up)
            self.most = max(self.most, len(up))


@pytest.fixture
def seen(cluster: LocalAutoscaler) -> Iterator[Seen]:
    """What a test brings up, from nothing."""
    cluster.wait_for(lambda: cluster.roles() == [])
    watch = Seen(cluster)
    watch.start()
    yield watch
    watch.done.set()
    watch.join()


@pytest.mark.vllm
def test_labelling_brings_its_nodes_up_from_none_and_they_go(
    cluster: LocalAutoscaler, seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "key")
    with FakeOpenAI(answer_by_rule) as endpoint:
        config = make_config(tmp_path / "run", endpoint.url, images=12)
        config = placed(config, label__extractor="data", label__verifier__engine="inference")
        write_responses(config)
        with NodeJob("label", config, cluster.address, tmp_path) as job:
            output = job.finish()
    cluster.wait_for(lambda: cluster.roles() == [])
    assert seen.roles == {"data", "inference"}
    assert "was lost" not in output  # an idle node that goes is no loss
    manifest = read_manifest(config.run.dir, "feedback")
    assert manifest is not None and manifest["rows"] + manifest["rejected"] == 12


def test_reward_training_lands_on_its_own_node_type(cluster: LocalAutoscaler, seen: Seen, tmp_path: Path) -> None:
    config = placed(job_config(tmp_path / "run", num_workers=2), rewards="training")
    publish_feedback(tmp_path / "run", feedback_rows(tmp_path / "images"))
    with NodeJob("train_rewards", config, cluster.address, tmp_path) as job:
        job.finish()
    cluster.wait_for(lambda: cluster.roles() == [])
    assert seen.roles == {"training"} and seen.most == 1


def test_a_reward_service_grows_with_its_load(cluster: LocalAutoscaler, seen: Seen, tmp_path: Path) -> None:
    """Two reward models fill a node of 16 CPUs: more replicas need more nodes."""
    save_reward_models(tmp_path / "rewards")
    config = service_config(tmp_path, placement="separate", num_cpus=8, min_replicas=1, max_replicas=2)
    config = placed(config, serve="inference")
    with NodeJob("serve_rewards", config, cluster.address, tmp_path) as job:
        job.wait_for(lambda: "Try it" in job.output)
        found = re.search(r"at (http://\S+) \(API", job.output)
        assert found is not None
        before = cluster.roles().count("inference")
        with ExitStack() as block:
            callers = [block.enter_context(Caller(found[1])) for _ in range(12)]
            job.wait_for(lambda: cluster.roles().count("inference") > before)
    assert before == 2
    assert {status for caller in callers for status, _ in caller.answers} <= {200, 429, 503}
    cluster.wait_for(lambda: cluster.roles() == [])
