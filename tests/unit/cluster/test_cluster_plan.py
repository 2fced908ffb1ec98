"""Plans: what a cluster can take, and the one sentence about what it never can."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paths import ROOT

from benchmarks import PAPER_SETUP
from fgaif_ray.cluster.node_types import ClusterFile, NodeType, matches, read_cluster_file
from fgaif_ray.cluster.plan import plan_cluster, plan_notes, plan_table
from fgaif_ray.config import Config, change_config, load_config
from fgaif_ray.errors import UserError
from jobs.cli import EXIT_USER_ERROR, main

HEAD = NodeType("head", {"CPU": 0}, 1)
DATA = NodeType("data", {"CPU": 8}, 2, {"role": "data"})
INFERENCE = NodeType("inference", {"CPU": 8, "GPU": 1}, 4, {"role": "inference"})
TRAINING = NodeType("training", {"CPU": 16, "GPU": 4}, 1, {"role": "training"})
GPU_RUN = (
    "align.num_workers=4",
    "align.gpus_per_worker=1",
    "align.rollout.workers=2",
    "align.rollout.engine.num_gpus=1",
    "serve.num_gpus=1",
)


def cluster(*node_types: NodeType, max_workers: int = 10) -> ClusterFile:
    return ClusterFile("cluster.yaml", (HEAD, *node_types), max_workers, "head")


def shapes(*overrides: str) -> Config:
    return load_config(ROOT / "configs" / "shapes.yaml", [*PAPER_SETUP, *overrides])


def placed(config: Config, on: ClusterFile) -> dict[str, dict[str, int]]:
    return {row.request.actor: dict(row.node_types) for row in plan_cluster(config, on)}


def test_a_cluster_of_cpu_nodes_takes_the_embedded_world() -> None:
    types = {name for where in placed(shapes(), cluster(DATA)).values() for name in where}
    assert types == {"data"}


def test_gpu_actors_go_to_nodes_with_gpus_and_the_others_to_nodes_without() -> None:
    found = placed(shapes("sample.engine.num_gpus=1"), cluster(DATA, INFERENCE))
    assert (found["Sampler"], found["RewardTrainer"]) == ({"inference": 1}, {"data": 2})


def test_learning_from_preferences_takes_the_learner_alone() -> None:
    preferences = ("align.algorithm=dpo", "sample.samples_per_prompt=2")
    online, offline = placed(shapes(), cluster(DATA)), placed(shapes(*preferences), cluster(DATA))
    gone = online.keys() - offline.keys()
    assert gone == {"RewardGateway", "SharedReward", "RolloutWorker"}
    assert offline["Learner"] == {"data": 2}


def test_labels_send_stages_to_their_own_node_types() -> None:
    labelled = shapes("align.label_selector.role=training", "sample.engine.label_selector.role=inference")
    found = placed(labelled, cluster(DATA, INFERENCE, TRAINING))
    assert (found["Learner"], found["Sampler"], found["Generator"]) == ({"training": 2}, {"inference": 1}, {"data": 1})


def test_an_actor_that_no_node_type_can_take_is_named_with_what_it_asks_for() -> None:
    with pytest.raises(UserError) as error:
        plan_cluster(shapes("align.rollout.engine.num_gpus=2"), cluster(DATA, INFERENCE))
    message = str(error.value)
    assert message.startswith(
        "align: no node of cluster.yaml can ever take a RolloutWorker, which asks for 1 CPU, 2 GPU"
    )
    assert "align.rollout.engine" in message


def test_labels_that_no_node_type_has_are_named() -> None:
    with pytest.raises(UserError, match=r"no node type has these labels\): change rewards\.label_selector"):
        plan_cluster(shapes("rewards.label_selector.role=trainer"), cluster(DATA))


def test_workers_that_never_fit_side_by_side_are_found() -> None:
    plan_cluster(shapes(*GPU_RUN), cluster(DATA, INFERENCE, TRAINING))
    said = r"align needs .* at the same time, and beside the others cluster\.yaml has room for"
    with pytest.raises(UserError, match=said):
        plan_cluster(shapes(*GPU_RUN), cluster(DATA, INFERENCE))


def test_the_limit_of_the_whole_cluster_counts() -> None:
    with pytest.raises(UserError, match="at the same time"):
        plan_cluster(shapes(*GPU_RUN), cluster(DATA, INFERENCE, TRAINING, max_workers=3))


def test_a_pool_of_data_workers_may_wait_for_room() -> None:
    plan = plan_cluster(shapes("sample.engines=20", "sample.engine.num_gpus=1"), cluster(DATA, INFERENCE))
    assert dict(plan[0].node_types) == {"inference": 4}
    assert "16 wait for room" in plan_table(plan)


def test_fractions_share_a_gpu() -> None:
    separate = shapes("serve.placement=separate", "serve.num_gpus=0.3", "serve.num_cpus=0.1")
    one = NodeType("one", {"CPU": 8, "GPU": 1}, 1)
    assert placed(separate, cluster(one))["RelationReward"] == {"one": 1}
    with pytest.raises(UserError, match="room for 0 RelationReward only"):
        plan_cluster(change_config(separate, ["serve.num_gpus=0.4"]), cluster(one))


def test_some_stages_can_be_planned_alone() -> None:
    rows = plan_cluster(shapes("align.gpus_per_worker=8"), cluster(DATA), ("serve_rewards",))
    assert {row.stage for row in rows} == {"serve_rewards"}


@settings(max_examples=60, deadline=None)
@given(
    workers=st.integers(1, 6),
    cpus=st.integers(1, 6),
    gpus=st.sampled_from([0, 0.25, 0.5, 1, 2]),
    most=st.integers(1, 5),
    node_cpus=st.integers(1, 12),
    node_gpus=st.integers(0, 4),
)
def test_equal_workers_fit_exactly_when_counting_says_so(
    workers: int, cpus: int, gpus: float, most: int, node_cpus: int, node_gpus: int
) -> None:
    config = shapes(
        f"rewards.num_workers={workers}", f"rewards.cpus_per_worker={cpus}", f"rewards.gpus_per_worker={gpus}"
    )
    on = cluster(NodeType("node", {"CPU": node_cpus, "GPU": node_gpus}, most))
    per_node = min(node_cpus // cpus, int(node_gpus / gpus) if gpus else workers)
    if per_node * most >= workers:
        rows = plan_cluster(config, on, ("train_rewards",))
        assert sum(rows[0].node_types.values()) == workers
    else:
        with pytest.raises(UserError):
            plan_cluster(config, on, ("train_rewards",))


@pytest.mark.parametrize(
    ("condition", "labels", "expected"),
    [
        ("a", {"role": "a"}, True),
        ("a", {"role": "b"}, False),
        ("a", {}, False),
        ("!a", {"role": "b"}, True),
        ("!a", {"role": "a"}, False),
        ("in(a, b)", {"role": "b"}, True),
        ("in(a,b)", {"role": "c"}, False),
        ("!in(a, b)", {"role": "c"}, True),
    ],
)
def test_label_conditions(condition: str, labels: dict[str, str], expected: bool) -> None:
    assert matches({"role": condition}, labels) is expected


def call_plan(repository: Path, *arguments: str) -> int:
    config = str(repository / "configs" / "shapes.yaml")
    return main("plan", ["--config", config, *arguments])


def test_the_option_prints_the_table(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call_plan(repository, "--cluster", str(repository / "cluster.yaml")) == 0
    output = capsys.readouterr().out
    assert re.search(r"^stage +actor +count +each asks for +node type$", output, re.MULTILINE)
    assert re.search(r"^train_rewards +RewardTrainer +2 +1 CPU +data$", output, re.MULTILINE)


def test_without_a_cluster_file_this_machine_is_planned_for(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_plan(repository) == 0
    assert "this machine" in capsys.readouterr().out


def test_gpus_that_are_only_numbers_are_planned_for(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["--set", "sample.engine.num_gpus=1", "--set", "ray.logical_gpus=1"]
    assert main("plan", ["--config", str(repository / "configs/shapes.yaml"), *changes, "sample"]) == 0
    assert "1 GPU" in capsys.readouterr().out


def test_what_can_never_be_scheduled_is_one_sentence_and_status_2(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--cluster", str(repository / "cluster.yaml"), "--set", "align.gpus_per_worker=9")
    assert call_plan(repository, *arguments) == EXIT_USER_ERROR
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("plan: align: no node of ") and captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "not valid YAML"),
        ("a: 1", "describes no cluster"),
        (
            "head_node_type: x\navailable_node_types: {head: {resources: {CPU: 1}}}",
            "head_node_type has to be one of head",
        ),
        ("head_node_type: h\navailable_node_types: {h: {resources: {}, node_config: {}}}", "how many CPUs"),
        ("kind: RayCluster\nspec: {}", "not laid out as a cluster file"),
    ],
)
def test_a_wrong_cluster_file_is_told_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_cluster_file(path)


def test_a_missing_cluster_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.yaml"):
        read_cluster_file(tmp_path / "absent.yaml")


def test_notes_name_what_would_go_wrong_between_machines() -> None:
    notes = " ".join(plan_notes(shapes(), cluster(DATA)))
    assert "run.dir=runs/shapes" in notes and "label.extractor.serve_model" in notes
    ready = shapes(
        "run.dir=s3://bucket/run", "label.extractor.serve_model=null", "label.extractor.base_url=http://models:8000/v1"
    )
    assert list(plan_notes(ready, cluster(DATA))) == []
