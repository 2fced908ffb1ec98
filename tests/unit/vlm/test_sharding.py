"""A backbone cut up over two learner processes: the same results as whole, half the memory, and no process waits for
a pass that the other does not make."""

import json
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as multiprocessing
from PIL import Image
from safetensors.torch import load_file, save_file
from support.ppo_steps import (
    CHECKPOINT,
    PPO,
    PROMPT,
    difference,
    learner_state,
    new_model,
    toy_responses,
    trajectory,
)
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fgaif_ray.config import AlignConfig, KLConfig, LoRAOptions, PPOConfig
from fgaif_ray.rl import policy
from fgaif_ray.rl.kept_policy import KeptPolicy
from fgaif_ray.rl.policy import PolicyModel
from fgaif_ray.rl.staleness import policy_log_probs
from fgaif_ray.rl.step import PPOUpdater, estimate, prepare
from fgaif_ray.rl.trajectories import collate
from fgaif_ray.vlm import passes
from fgaif_ray.vlm.backbone import load_backbone
from fgaif_ray.vlm.group import LearnerGroup

STEP = PPO.model_copy(update={"epochs": 1, "micro_batch_size": 2, "entropy_coefficient": 0.01, "max_grad_norm": 1e9})
VARIANTS: dict[str, tuple[bool, int | None]] = {"plain": (False, None), "checkpointed-by-tokens": (True, 45)}
"""Activation checkpointing, and tokens of a pass: here of one or two rows."""


def responses_of(rank: int) -> list[list[int]]:
    """Ten for the first process and three for the second, whose passes and images are fewer."""
    return toy_responses(13)[:10] if rank == 0 else toy_responses(13)[10:]


def images_of(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (60, 60), (17 * index, 90, 120)) for index in range(count)]


def frozen(model: PolicyModel) -> Iterator[nn.Parameter]:
    trained = {id(one) for one in (model.policy_parameters() | model.critic_parameters()).values()}
    return (one for one in model.backbone.model.parameters() if id(one) not in trained)


def held_bytes(tensor: Tensor) -> int:
    """What this process keeps of a tensor, sharded or not."""
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return own.untyped_storage().nbytes()


def frozen_bytes(model: PolicyModel) -> int:
    return sum(held_bytes(parameter) for parameter in frozen(model))


def disturb(model: PolicyModel) -> None:
    """Adapters that do something, so that policy, reference and critic differ."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in (model.policy_parameters() | model.critic_parameters()).values():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))


def step(model: PolicyModel, group: LearnerGroup, updater: PPOUpdater, rank: int, config: PPOConfig) -> dict[str, Any]:
    """All that a learner does with a model in a step; returns what it saw."""
    responses = responses_of(rank)
    rows = model.encode([PROMPT] * len(responses), images_of(len(responses)), responses)
    estimates = estimate(model, rows, 4, batch_tokens=config.micro_batch_tokens)
    trajectories = [
        trajectory(index, ids, estimates.log_probs[index, : len(ids)].tolist()) for index, ids in enumerate(responses)
    ]
    batch = collate(trajectories, model.backbone.eos_token_id)
    data = prepare(rows, batch, estimates, config, KLConfig(), 0.1, group)
    metrics = updater.update(data, 0, torch.Generator().manual_seed(0), 2)
    previous = KeptPolicy(model)
    previous.keep()
    with previous.restored():
        probed = policy_log_probs(model, rows, 4, config.micro_batch_tokens)
    tensors = {"log_probs": estimates.log_probs, "reference": estimates.reference_log_probs}
    tensors |= {"values": estimates.values, "entropies": estimates.entropies, "probed": probed}
    return {"metrics": metrics, "tensors": tensors}


class Peak:
    """The most frozen bytes that were held while a decoder layer computed."""

    def __init__(self, model: PolicyModel) -> None:
        self.bytes = 0
        self._model = model
        layers: Any = model.backbone.decoder.layers
        for layer in layers:
            layer.mlp.register_forward_hook(self._look)

    def _look(self, *_: Any) -> None:
        self.bytes = max(self.bytes, frozen_bytes(self._model))


def learn(rank: int, port: int, folder: str) -> None:
    """One of two processes: the same step whole and sharded, in each variant, and a checkpoint of the sharded one."""
    torch.set_num_threads(1)
    # A pass that one process makes alone is an error, late but not never.
    options: dict[str, Any] = {"rank": rank, "world_size": 2, "timeout": timedelta(minutes=5)}
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", **options)
    policy.IMAGES_PER_PASS = 4  # type: ignore[misc]
    passes.LOGITS_PER_CHUNK = 5 * 526  # type: ignore[misc]
    group = LearnerGroup(torch.device("cpu"))
    for variant, (checkpointing, tokens) in VARIANTS.items():
        target = Path(folder, variant)
        target.mkdir(exist_ok=True)
        config = STEP.model_copy(update={"micro_batch_tokens": tokens})
        out: dict[str, Any] = {}
        for name in ("whole", "sharded"):
            model = PolicyModel(
                load_backbone(CHECKPOINT, "float32"),
                LoRAOptions(rank=4, alpha=8),
                activation_checkpointing=checkpointing,
                sharded_over=group if name == "sharded" else None,
            )
            disturb(model)
            start, before, peak = model.trained_state(), frozen_bytes(model), Peak(model)
            updater = PPOUpdater(model, config, group)
            seen = step(model, group, updater, rank, config)
            started = {f"started/{key}": tensor for key, tensor in start.items()}
            state = model.trained_state() | started | updater.state_dict()
            save_file(seen["tensors"] | state, target / f"{name}-{rank}.safetensors")
            held = {"before": before, "after": frozen_bytes(model), "peak": peak.bytes}
            out[name] = held | {"metrics": seen["metrics"]}
        learner_state(model, updater).save(target / f"checkpoint-{rank}", 1)
        (target / f"{rank}.json").write_text(json.dumps(out))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have written, a folder for each variant."""
    folder = tmp_path_factory.mktemp("sharded")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(learn, (port, str(folder)), nprocs=2)
    return folder


@pytest.fixture(params=VARIANTS)
def learnt(request: pytest.FixtureRequest, both: Path) -> Path:
    """The folder of a variant."""
    return both / str(request.param)


def figures(folder: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{rank}.json").read_text())
    return found


def tensors(folder: Path, name: str, rank: int) -> dict[str, Tensor]:
    return load_file(folder / f"{name}-{rank}.safetensors")


def distance(first: dict[str, Tensor], second: dict[str, Tensor], prefix: str, base: str | None = None) -> float:
    """Norm of the difference of all tensors of a prefix, as a share of their own, or of their distance from a base."""
    names = [name for name in first if name.startswith(prefix)]
    off = sum(float((first[name] - second[name]).square().sum()) for name in names)
    own = [first[name] - (0 if base is None else first[base + name]) for name in names]
    return float((off / sum(float(tensor.square().sum()) for tensor in own)) ** 0.5)


@pytest.mark.slow
def test_uneven_shares_of_a_step_give_what_they_give_unsharded(learnt: Path) -> None:
    for rank in range(2):
        whole, sharded = (tensors(learnt, name, rank) for name in ("whole", "sharded"))
        for name in ("log_probs", "reference", "values", "entropies"):
            assert torch.allclose(sharded[name], whole[name], atol=1e-5)
        assert distance(whole, sharded, "exp_avg/") < 1e-4  # of both steps' gradients
        # Adam divides by a gradient's size, so that also what is rounding alone moves a weight.
        assert distance(whole, sharded, "base_model", "started/") < 1e-2
        metrics = {name: figures(learnt, rank)[name]["metrics"] for name in ("whole", "sharded")}
        assert metrics["sharded"] == pytest.approx(metrics["whole"], rel=1e-3, abs=1e-5, nan_ok=True)
    assert torch.equal(*(tensors(learnt, "sharded", rank)["value_head.weight"] for rank in range(2)))


@pytest.mark.slow
def test_a_process_holds_half_of_the_backbone_and_a_layer_more_while_it_computes(learnt: Path) -> None:
    model = new_model()
    layers: Any = model.backbone.decoder.layers
    layer = sum(held_bytes(one) for one in layers[0].parameters())
    for rank in range(2):
        whole, sharded = (figures(learnt, rank)[name] for name in ("whole", "sharded"))
        assert whole["before"] == whole["after"] == whole["peak"]
        assert sharded["before"] == sharded["after"] < 0.51 * whole["before"]
        assert sharded["peak"] < sharded["before"] + 2.5 * layer


@pytest.mark.slow
def test_a_sharded_checkpoint_goes_on_unsharded(learnt: Path) -> None:
    model = new_model()
    resumed = learner_state(model, PPOUpdater(model, PPO, LearnerGroup(torch.device("cpu"))))
    assert resumed.load(learnt / "checkpoint-0") == 1
    saved = {name: tensors(learnt, "sharded", 0)[name] for name in model.trained_state()}
    assert difference(model.trained_state(), saved) == 0
    assert len(resumed.updater.state_dict()) == 3 * len(saved)


def test_one_worker_has_nothing_to_shard_over() -> None:
    with pytest.raises(ValueError, match=r"raise align\.num_workers, or set align\.sharding to none"):
        AlignConfig(sharding="full")
    assert AlignConfig(sharding="full", num_workers=2).sharding == "full"
