"""What a plan says about GPUs' memory: against real tensors, by hand, and as a person reads it."""

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.official_llava import config_7b, config_13b, write_config
from support.paths import ROOT
from torch.optim import AdamW

from benchmarks import PAPER_SETUP
from fgaif_ray.cluster.actor_memory import GIB, RUNTIME, footprint
from fgaif_ray.cluster.dry_run import dry_run
from fgaif_ray.cluster.memory_plan import MemoryPlan, plan_memory
from fgaif_ray.cluster.node_types import ClusterFile, NodeType
from fgaif_ray.cluster.plan import plan_cluster
from fgaif_ray.cluster.remedies import remedy
from fgaif_ray.cluster.resources import generator, learner, reward_replica, reward_trainer, rollout_worker
from fgaif_ray.config import Config, LoRAOptions, PPOConfig, change_config, load_config
from fgaif_ray.errors import UserError
from fgaif_ray.preferences.encoding import EncodedPair
from fgaif_ray.preferences.step import DPOUpdater
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rewards.data import FeatureCache, TrainingResponse, prepare_data
from fgaif_ray.rewards.kinds import reward_tasks
from fgaif_ray.rewards.model import RewardModel
from fgaif_ray.rewards.training import train_reward_model
from fgaif_ray.rl.policy import PolicyModel
from fgaif_ray.rl.step import Experience, PPOUpdater, estimate
from fgaif_ray.vlm.backbone import load_backbone
from fgaif_ray.vlm.group import LearnerGroup
from jobs.cli import EXIT_USER_ERROR, main


def shapes(*overrides: str) -> Config:
    return load_config(ROOT / "configs" / "shapes.yaml", [*PAPER_SETUP, *overrides])


def sizes(config: Config, request: Any, gpu: int | None = None) -> dict[str, int | None]:
    found = footprint(config, request, gpu)
    assert found is not None
    return {part.what: part.size for part in found.parts}


def bytes_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def planned(config: Config, *node_types: NodeType, gpu: float | None = None, stage: str = "") -> MemoryPlan:
    head = NodeType("head", {"CPU": 0}, 1)
    cluster = ClusterFile("cluster.yaml", (head, *node_types), 10, "head")
    plan = plan_cluster(config, cluster, (stage,) if stage else ())
    return plan_memory(config, cluster, plan, None if gpu is None else int(gpu * GIB))


def advice(config: Config, request: Any, room_gib: float) -> str | None:
    found = footprint(config, request, None)
    assert found is not None
    return remedy(config, request, found, 80 * GIB, int(room_gib * GIB))


@pytest.fixture
def optimisers(monkeypatch: pytest.MonkeyPatch) -> list[AdamW]:
    """Every AdamW that is made during a test."""
    made: list[AdamW] = []

    class Recorded(AdamW):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(torch.optim, "AdamW", Recorded)
    return made


def state_bytes(optimiser: AdamW) -> int:
    return bytes_of(tensor for state in optimiser.state.values() for tensor in state.values())


def picture(index: int) -> Image.Image:
    return Image.new("RGB", (60, 60), (10 * index, 90, 120))


def test_the_learners_weights_gradients_and_optimiser_are_counted_to_the_byte(optimisers: list[AdamW]) -> None:
    config = shapes()
    model = PolicyModel(load_backbone(config.policy.model, config.policy.dtype), config.align.lora)
    parameters = model.policy_parameters() | model.critic_parameters()
    own = {id(parameter) for parameter in parameters.values()}
    everything = [*model.backbone.model.parameters(), *model.backbone.model.buffers()]
    rows = model.encode(["What is shown?"] * 2, [picture(1), picture(2)], [[70, 80, 2], [90, 2]])
    model.log_probs(rows).log_probs.sum().backward()
    model.values(rows).sum().backward()
    gradients = bytes_of(parameter.grad for parameter in parameters.values())
    model.zero_grad()
    before = estimate(model, rows, 2)
    ones = torch.ones_like(before.values)
    experience = Experience(
        rows=rows,
        behaviour_log_probs=before.log_probs,
        old_log_probs=before.log_probs,
        old_values=before.values,
        advantages=ones,
        returns=ones,
        mask=torch.tensor([[True, True, True], [True, True, False]]),
        metrics={},
    )
    PPOUpdater(model, PPOConfig(), LearnerGroup(model.device)).update(experience, 0, torch.Generator(), 1)
    weights, adapters, counted_gradients, states, *_ = sizes(config, learner(config)).values()
    assert weights == bytes_of(tensor for tensor in everything if id(tensor) not in own)
    assert (adapters, counted_gradients) == (bytes_of(parameters.values()), gradients)
    assert states == state_bytes(optimisers[0])


def test_the_learner_of_preferences_is_counted_with_the_policy_alone(optimisers: list[AdamW]) -> None:
    config = shapes("align.algorithm=dpo", "sample.samples_per_prompt=2", "align.num_workers=1")
    model = PolicyModel(load_backbone(config.policy.model, config.policy.dtype), config.align.lora, critic=False)
    pairs = [EncodedPair(("a.png",), "What is shown?", (), (70, 80, 2), (90, 2))]
    DPOUpdater(model, config.align.dpo, LearnerGroup(model.device), 1).update(pairs, [(picture(1),)], 0)
    weights, adapter, gradients, states, encoded, kept, working = sizes(config, learner(config)).values()
    assert adapter == gradients == bytes_of(model.policy_parameters().values())
    assert weights == bytes_of([*model.backbone.model.parameters(), *model.backbone.model.buffers()]) - adapter
    assert states == state_bytes(optimisers[0])
    assert encoded and kept and working


def test_a_pass_of_fewer_pairs_is_what_makes_a_learner_of_preferences_fit() -> None:
    preferences = ("align.algorithm=dpo", "sample.samples_per_prompt=2", "align.num_workers=1")
    config = shapes(*preferences, "align.dpo.micro_batch_size=64")
    total = footprint(config, learner(config), None)
    assert total is not None
    found = advice(config, learner(config), 0.6 * total.total / GIB)
    assert found is not None and "align.dpo.micro_batch_size=" in found
    changed = change_config(config, found.split(", or ")[0].split(" with "))
    smaller = footprint(changed, learner(changed), None)
    assert smaller is not None and smaller.total <= 0.62 * total.total  # it is taken to grow evenly


def test_an_algorithm_without_a_critic_is_planned_without_one() -> None:
    config = shapes("align.algorithm=grpo", "align.samples_per_prompt=2")
    model = PolicyModel(load_backbone(config.policy.model, config.policy.dtype), config.align.lora, critic=False)
    _, adapters, *_ = sizes(config, learner(config)).values()
    assert adapters == bytes_of(model.policy_parameters().values())


def test_every_image_of_a_prompt_is_counted() -> None:
    room = ("sample.engine.max_model_len=512", "align.rollout.engine.max_model_len=512", "align.num_workers=1")
    one, three = (shapes(*room, f"data.images_per_prompt={images}") for images in (1, 3))
    run = dry_run(one.policy.model, one.policy.dtype)
    assert run.image_tokens is not None
    for ask in (learner, reward_trainer, lambda config: reward_replica(config, "SharedReward")):
        before, after = (sizes(config, ask(config)) for config in (one, three))
        assert _tokens(after) - _tokens(before) == 2 * run.image_tokens
    (features, before), (_, after) = (
        next((what, size) for what, size in sizes(config, learner(config)).items() if what.startswith("image features"))
        for config in (one, three)
    )
    prompts = one.align.rollout_batch_size // one.align.samples_per_prompt
    assert features.endswith(f" of {one.align.rollout_batch_size:,} responses")
    assert (after or 0) - (before or 0) > 2 * run.image_pass(prompts).kept > 0  # and longer rows


def _tokens(parts: dict[str, int | None]) -> int:
    """The longest sequence that a plan names."""
    return max(int(found[1].replace(",", "")) for what in parts if (found := re.search(r"of ([\d,]+) tokens", what)))


def test_what_training_of_reward_models_leaves_is_counted_to_the_byte(optimisers: list[AdamW], tmp_path: Path) -> None:
    config = shapes("rewards.epochs=1", "rewards.num_workers=1")
    backbone = load_backbone(config.rewards.backbone, config.rewards.dtype)
    responses = []
    for index in range(4):
        path = tmp_path / f"{index}.png"
        picture(index).save(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        labels = dict.fromkeys(FACT_TYPES, (index % 3,))
        responses.append(TrainingResponse((str(path),), digest, "What is shown?", ("A circle.",), labels))
    data = prepare_data(backbone, responses, 0.25, 0, lambda _count: None)
    model, features = RewardModel(backbone), FeatureCache(backbone)
    for task in reward_tasks("separate", FACT_TYPES):
        train_reward_model(model, task, data, features, config.rewards, 0, lambda _count, _note: None)
    trained = [value for name, value in model.named_parameters() if "lora_" in name]
    trained += [
        value
        for name, value in backbone.model.named_parameters()
        if "lora_" in name and all(value is not one for one in trained)
    ]
    trained += [value for value in model.heads.parameters() if all(value is not one for one in trained)]
    _, adapters, gradients, states, best, *_ = sizes(config, reward_trainer(config)).values()
    assert adapters == bytes_of(trained)
    assert gradients == bytes_of(parameter.grad for parameter in trained)
    assert states == state_bytes(optimisers[-1])
    assert best == bytes_of(trained) // 3


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """``configs/llava-1.5-7b.yaml`` with folders that hold the models' configurations."""
    folder = tmp_path_factory.mktemp("models")
    policy = write_config(folder / "llava-1.5-7b-hf", config_7b())
    other = write_config(folder / "llava-1.5-13b-hf", config_13b())
    overrides = (f"policy.model={policy}", f"label.verifier.model={other}", f"rewards.backbone={other}")
    return load_config(ROOT / "configs" / "llava-1.5-7b.yaml", overrides)


def changed(config: Config, **sections: Any) -> Config:
    """The configuration with some keys of ``align`` changed."""
    return config.model_copy(update={"align": config.align.model_copy(update=sections)})


def test_the_cache_of_an_engine_is_what_its_share_of_the_gpu_leaves(large: Config) -> None:
    parts = sizes(large, generator(large), 48 * GIB)
    cache = next(size for what, size in parts.items() if what.startswith("key-value"))
    others = sum(size or 0 for size in parts.values()) - (cache or 0)
    assert cache == int(0.9 * 48 * GIB) - others
    assert cache is not None and f": {cache // (524_288 * 2048)} sequences of 2,048 tokens" in "".join(parts)


def test_slots_for_adapters_take_a_rank_that_vllm_has(large: Config) -> None:
    odd = changed(large, lora=LoRAOptions(rank=40))
    parts = sizes(odd, rollout_worker(odd), 48 * GIB)
    assert parts["2 slots for adapters up to rank 64, bfloat16"] == 2 * 2 * 159_907_840


def test_merged_weights_need_no_slots_but_a_layer(large: Config) -> None:
    merged = changed(large, rollout=large.align.rollout.model_copy(update={"sync": "merged"}))
    parts = sizes(merged, rollout_worker(merged), 48 * GIB)
    assert not any("slots" in what for what in parts)
    assert parts["largest layer once more, while merged weights are loaded"] == 32064 * 4096 * 2


def test_a_replica_holds_an_adapter_for_each_type_it_scores(large: Config) -> None:
    shared, *_ = [part for part in sizes(large, reward_replica(large, "SharedReward")) if "adapter" in part]
    assert shared == "3 adapter(s) of rank 64, 3 head(s), float32"


def test_sampling_ahead_keeps_the_policy_before(large: Config) -> None:
    ahead = changed(large, rollout=large.align.rollout.model_copy(update={"max_staleness": 1}))
    parts = sizes(ahead, learner(ahead))
    assert parts["adapter of the policy before, and a copy while it is probed"] == 2 * 4 * 159_907_840


def test_checkpointing_leaves_a_small_part_of_the_states(large: Config) -> None:
    def states(config: Config) -> int:
        return next(size or 0 for what, size in sizes(config, learner(config)).items() if what.startswith("states"))

    assert states(changed(large, activation_checkpointing=True)) < states(large) / 8


def test_a_learner_that_does_not_fit_is_told_settings_that_do(large: Config) -> None:
    node = NodeType("training", {"CPU": 48, "GPU": 4}, 2, accelerator="g6e.12xlarge")
    plan = planned(large, node, NodeType("data", {"CPU": 64, "GPU": 8}, 2, accelerator="H100"), stage="align")
    [warning] = [one for one in plan.warnings() if "Learner" in one]
    assert "align.ppo.micro_batch_size=3, or align.activation_checkpointing=true" in warning
    ppo = large.align.ppo.model_copy(update={"micro_batch_size": 3})
    for fixed in (changed(large, ppo=ppo), changed(large, activation_checkpointing=True)):
        assert [load.actors for load in planned(fixed, node, stage="align").loads if not load.fits] == []
    four = changed(large, ppo=ppo.model_copy(update={"micro_batch_size": 4}))
    assert [load.actors for load in planned(four, node, stage="align").loads if not load.fits] == ["Learner"]


def test_a_sharded_backbone_is_counted_in_parts_and_advised_where_it_does_not_fit(large: Config) -> None:
    four = changed(large, num_workers=4)
    run = dry_run(large.policy.model, "bfloat16")
    weights, gathered, *_ = sizes(changed(four, sharding="full"), learner(four)).values()
    assert weights == run.weight_bytes(shards=4) == pytest.approx(run.parameters * 2 / 4, abs=16_384)  # buffers
    assert gathered == 3 * 2 * (4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096)
    advised = advice(four, learner(four), 16)
    assert advised == "align.sharding=full with align.activation_checkpointing=true"
    one = changed(large, num_workers=1)
    assert advice(one, learner(one), 16) is None  # no workers to cut it up over
    roomy = advice(four, learner(four), 40)
    assert roomy is not None and "sharding" not in roomy


def test_fractions_share_a_gpu_and_its_memory(large: Config) -> None:
    serve = large.serve.model_copy(update={"placement": "separate", "num_gpus": 0.3})
    config = large.model_copy(update={"serve": serve})
    node = NodeType("gpu", {"CPU": 64, "GPU": 8}, 1)
    [load] = planned(config, node, gpu=80, stage="serve_rewards").loads
    assert load.actors == "ExistenceReward + AttributeReward + RelationReward"
    single = footprint(config, reward_replica(config, "ExistenceReward"), 80 * GIB)
    assert single is not None and load.total == 3 * single.total
    plan = planned(config, node, gpu=60, stage="serve_rewards")
    assert load.fits is False or plan.loads[0].fits is False
    assert "let fewer actors share a GPU" in next(plan.warnings())


def sharing(config: Config, **engine: Any) -> Config:
    """Rollouts on half of a GPU, the learner on the other."""
    rollout = config.align.rollout
    shared = rollout.engine.model_copy(update={"num_gpus": 0.5, "kv_cache_gib": 4, **engine})
    rollout = rollout.model_copy(update={"workers": 1, "engine": shared})
    return changed(config, num_workers=1, gpus_per_worker=0.5, rollout=rollout, activation_checkpointing=True)


def test_an_engine_that_looks_for_more_than_the_others_leave_cannot_start(large: Config) -> None:
    node = NodeType("gpu", {"CPU": 64, "GPU": 8}, 1)
    plan = planned(sharing(large), node, gpu=80, stage="align")
    [warning] = [one for one in plan.warnings() if "Learner + RolloutWorker" in one]
    assert "cannot start: a RolloutWorker looks for a larger share of the GPU" in warning
    advised = float(warning.rpartition("align.rollout.engine.gpu_memory_utilization=")[2].rstrip("."))
    assert 0.5 < advised < 0.9  # the default
    for share, fits in ((advised, True), (advised + 0.02, False)):
        plan = planned(sharing(large, gpu_memory_utilization=share), node, gpu=80, stage="align")
        assert [load.fits for load in plan.loads if load.actors == "Learner + RolloutWorker"] == [fits]


def test_weights_that_no_gpu_of_the_node_holds_are_refused(large: Config) -> None:
    plan = planned(large, NodeType("gpu", {"CPU": 64, "GPU": 8}, 1), gpu=12, stage="sample")
    with pytest.raises(
        UserError, match=r"^sample: the weights alone of Sampler take 13\.2 GiB, more than the 12\.0 GiB"
    ):
        plan.check()


def test_an_engine_without_room_for_one_sequence_cannot_start(large: Config) -> None:
    plan = planned(large, NodeType("gpu", {"CPU": 64, "GPU": 8}, 1), gpu=16, stage="sample")
    plan.check()
    [warning] = plan.warnings()
    assert (
        "Sampler on gpu cannot start: it needs 16.0 GiB for one sequence of sample.engine.max_model_len=2048" in warning
    )


def test_unknown_gpus_leave_the_question_open(large: Config) -> None:
    plan = planned(large, NodeType("gpu", {"CPU": 64, "GPU": 8}, 1), stage="sample")
    assert plan.loads[0].fits is None
    assert "the rest of 0.9 of the GPU" in plan.table() and list(plan.warnings()) == []


def test_a_model_that_is_not_here_has_a_row_that_says_so() -> None:
    config = load_config(ROOT / "configs" / "llava-1.5-7b.yaml")
    table = planned(config, NodeType("gpu", {"CPU": 64, "GPU": 8}, 1), gpu=80).table()
    assert (
        "llava-hf/llava-1.5-13b-hf is not on this machine; `hf download llava-hf/llava-1.5-13b-hf config.json`" in table
    )


def test_two_gpus_for_one_engine_are_a_warning(large: Config) -> None:
    engine = large.sample.engine.model_copy(update={"num_gpus": 2})
    config = large.model_copy(update={"sample": large.sample.model_copy(update={"engine": engine})})
    plan = planned(config, NodeType("gpu", {"CPU": 64, "GPU": 8}, 1), gpu=80, stage="sample")
    assert any("asks for 2 GPUs and computes on one" in warning for warning in plan.warnings())


def test_a_served_extractor_lies_beside_what_ray_puts_on_the_first_gpu() -> None:
    config = shapes("label.verifier.engine.num_gpus=1")
    here = NodeType("this machine", {"CPU": 4, "GPU": 1}, 1)
    cluster = ClusterFile(here.name, (here,), 0, here.name)
    plan = plan_memory(config, cluster, plan_cluster(config, cluster, ("label",)), 8 * GIB)
    [load] = plan.loads
    assert load.actors == "vLLM server + Verifier"
    assert load.total > 2 * (GIB + RUNTIME)  # two caches of 1 GiB


def call_plan(*arguments: str) -> int:
    config = str(ROOT / "configs" / "shapes.yaml")
    return main("plan", ["--config", config, *arguments])


def test_without_gpus_the_table_has_no_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert call_plan() == 0
    output = capsys.readouterr().out
    rows = [line for line in output.splitlines() if "weights of fgaif_ray/shapes/checkpoints/" in line]
    assert len(rows) == 8 and all(line.split()[-1] == "none" for line in rows)
    assert "warning" not in output


def test_the_option_for_memory_decides_and_weights_alone_are_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--cluster", str(ROOT / "cluster.yaml"), "--set", "align.gpus_per_worker=1", "--gpu-memory")
    assert call_plan(*arguments, "4") == 0
    assert " 4.00  yes" in capsys.readouterr().out
    assert call_plan(*arguments, "0.001") == EXIT_USER_ERROR
    assert "the weights alone of Learner" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "-1", "much"])
def test_a_memory_that_is_none_is_refused(value: str) -> None:
    assert call_plan("--gpu-memory", value) == EXIT_USER_ERROR
