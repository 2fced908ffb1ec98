"""What the actors ask Ray for and what the plan of a cluster counts on are the same."""

import ast
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from benchmarks import PAPER_SETUP
from fgaif_ray.cluster import resources
from fgaif_ray.config import Config, change_config, load_config
from fgaif_ray.errors import UserError
from fgaif_ray.records import FACT_TYPES

RESOURCE_KEYWORDS = {"num_cpus", "num_gpus", "resources", "resources_per_worker", "label_selector", "accelerator_type"}
OVERRIDES = (
    "sample.engine.num_cpus=3",
    "sample.engine.num_gpus=0.5",
    "sample.engine.label_selector.role=inference",
    "serve.num_gpus=0.25",
    "serve.max_replicas=3",
    "serve.label_selector.role=inference",
    "rewards.gpus_per_worker=1",
    "rewards.label_selector.role=training",
)


@pytest.fixture
def config(repository: Path) -> Config:
    return load_config(repository / "configs" / "shapes.yaml", [*PAPER_SETUP, *OVERRIDES])


def asked_amounts(path: Path) -> list[str]:
    """Amounts other than nothing that a file asks Ray for by itself, as ``file:line``."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        pairs: list[tuple[Any, ast.AST]] = []
        if isinstance(node, ast.Call):
            pairs = [(keyword.arg, keyword.value) for keyword in node.keywords]
        elif isinstance(node, ast.Dict):
            pairs = [(getattr(key, "value", None), value) for key, value in zip(node.keys, node.values)]
        for name, value in pairs:
            nothing = isinstance(value, ast.Constant) and value.value in (0, None)
            # `ray.num_cpus` is what a Ray started here has, not what an actor asks for.
            offered = ast.unparse(value) == "config.ray.num_cpus"
            if name in RESOURCE_KEYWORDS and not nothing and not offered:
                found.append(f"{path.name}:{node.lineno}")
    return found


def test_no_actor_asks_for_resources_but_through_the_requests(repository: Path) -> None:
    files = [path for room in ("actors", "jobs") for path in sorted((repository / room).glob("*.py"))]
    assert [place for path in files for place in asked_amounts(path)] == []


def test_an_actor_that_asks_by_itself_is_seen(tmp_path: Path) -> None:
    source = tmp_path / "actor.py"
    source.write_text('a.options(num_cpus=0)\nb.options(num_gpus=1)\nc(ray_actor_options={"num_cpus": 0.1})\n')
    assert asked_amounts(source) == ["actor.py:2", "actor.py:3"]


def test_reward_deployments_ask_for_what_is_planned(config: Config, tmp_path: Path) -> None:
    from actors.rewards import app as reward_app

    published_rewards(tmp_path)
    run = config.model_copy(update={"run": config.run.model_copy(update={"dir": str(tmp_path)})})
    written = tmp_path / "config.yaml"
    written.write_text(yaml.safe_dump(run.model_dump(mode="json")))
    application = reward_app.build_app(reward_app.RewardAppArguments(config=str(written)))
    asked = {}
    for bound in bound_deployments(application):
        replicas = bound.num_replicas
        if bound._deployment_config.autoscaling_config is not None:
            scaling = bound._deployment_config.autoscaling_config
            replicas = (scaling.min_replicas, scaling.max_replicas)
        options = {key: value for key, value in bound.ray_actor_options.items() if value}
        asked[bound.name] = (options, replicas)
    planned = {
        request.actor: (
            {key: value for key, value in request.options().items() if value},
            (request.count, request.most) if request.most is not None else request.count,
        )
        for request in resources.stage_requests(config)[resources.SERVE_STAGE]
    }
    assert asked == planned


def published_rewards(run: Path) -> None:
    """Files that are looked at before an application is deployed; their weights fit no backbone."""
    for number, name in enumerate(FACT_TYPES):
        folder = run / "rewards" / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text('{"r": 1}')
        for file in ("adapter_model.safetensors", "head.safetensors"):
            save_file({"weight": np.full(3, number, dtype=np.float32)}, folder / file)


def bound_deployments(application: Any) -> list[Any]:
    """The deployments of an application that is not deployed, the ingress and those bound to it."""
    root = application._bound_deployment
    (_, scorers) = root.init_args
    return [root, *(scorer._bound_deployment for scorer in scorers)]


def test_options_are_those_that_ray_takes(config: Config) -> None:
    import ray
    from ray.data import Dataset

    request = resources.sampler(config)
    assert request.options() == {"num_cpus": 3, "num_gpus": 0.5, "label_selector": {"role": "inference"}}
    assert set(request.options()) <= set(inspect.signature(Dataset.map_batches).parameters)
    ray.remote(**request.options())(type("Actor", (), {}))  # Ray checks names and values of options here


def test_a_scaling_config_takes_what_a_trainer_asks_for(config: Config) -> None:
    from ray.train import ScalingConfig

    scaling: Any = ScalingConfig(**resources.reward_trainer(config).scaling())
    assert (scaling.num_workers, scaling.use_gpu, scaling.resources_per_worker, scaling.label_selector) == (
        2,
        True,
        {"CPU": 1, "GPU": 1},
        {"role": "training"},
    )


def test_an_elastic_learner_gives_ray_its_range_and_what_workers_are_counted_by(repository: Path) -> None:
    from ray.train import ScalingConfig

    changes = ["align.num_workers=[2, 4]", "align.resize_every_s=7", "align.worker_resource=learner"]
    config = load_config(repository / "configs" / "shapes.yaml", changes)
    scaling: Any = ScalingConfig(**resources.learner(config).scaling())
    assert (scaling.min_workers, scaling.max_workers, scaling.elastic_resize_monitor_interval_s) == (2, 4, 7)
    assert scaling.resources_per_worker == {"CPU": config.align.cpus_per_worker, "learner": 1}


def test_a_range_of_one_number_is_not_elastic(repository: Path) -> None:
    config = load_config(repository / "configs" / "shapes.yaml", ["align.num_workers=[2, 2]"])
    assert resources.learner(config).scaling()["num_workers"] == 2


def test_a_range_of_workers_begins_with_the_fewest(repository: Path) -> None:
    with pytest.raises(UserError, match="give the fewest first"):
        load_config(repository / "configs" / "shapes.yaml", ["align.num_workers=[4, 2]"])


def test_no_labels_are_asked_for_by_default(repository: Path) -> None:
    plain = load_config(repository / "configs" / "shapes.yaml", PAPER_SETUP)
    for requests in resources.stage_requests(plain).values():
        assert all("label_selector" not in request.options() for request in requests)


def test_a_reward_service_is_one_deployment_unless_each_type_is_to_have_its_own(repository: Path) -> None:
    shared = load_config(repository / "configs" / "shapes.yaml", PAPER_SETUP)
    assert list(resources.reward_scorers(shared)) == ["SharedReward"]
    separate = change_config(shared, ["serve.placement=separate"])
    assert list(resources.reward_scorers(separate)) == ["ExistenceReward", "AttributeReward", "RelationReward"]


@pytest.mark.parametrize(
    ("changes", "threads"),
    [
        (["serve.threads=null"], 2),
        (["serve.threads=3"], 3),
        (["serve.threads=null", "serve.num_gpus=1"], None),
    ],
)
def test_a_replica_on_processors_has_a_thread_for_each_of_its_models(
    repository: Path, monkeypatch: pytest.MonkeyPatch, changes: list[str], threads: int | None
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(16))
    config = load_config(repository / "configs" / "shapes.yaml", changes)
    assert resources.reward_threads(config, models=2) == threads
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(1))
    assert resources.reward_threads(config, models=2) == (1 if threads == 2 else threads)


@pytest.mark.parametrize("condition", ["in(a", "-a", "a b", "in()", "!!a"])
def test_a_label_condition_that_ray_would_refuse_is_refused(repository: Path, condition: str) -> None:
    with pytest.raises(UserError, match=r"sample\.engine\.label_selector\.role"):
        load_config(repository / "configs" / "shapes.yaml", [f"sample.engine.label_selector.role={condition!r}"])
