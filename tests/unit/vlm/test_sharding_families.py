"""Backbones of other families cut up over two learner processes, whose images differ in number and size."""

import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as multiprocessing
from PIL.Image import Image
from safetensors.torch import load_file, save_file
from support.families import FAMILIES, build, photo
from support.ppo_steps import toy_responses
from torch import Tensor

from fgaif_ray.config import LoRAOptions
from fgaif_ray.rl import policy
from fgaif_ray.rl.policy import PolicyModel
from fgaif_ray.rl.self_check import disturbed
from fgaif_ray.vlm.backbone import load_backbone
from fgaif_ray.vlm.group import LearnerGroup

NAMES = ("qwen3_vl", "llava_next", "idefics3")
"""Features for inner layers and positions in three dimensions; an end of image rows beside the tower; tiles."""
QUESTION = "What is this?"
SIZES = (((100, 80), (200, 60), (40, 130), (300, 300), (100, 80)), ((60, 60),))
"""Of the images of each process."""
PROCESSES = len(SIZES)


def images_of(rank: int) -> list[Image]:
    return [photo(*size, 10 * rank + seed) for seed, size in enumerate(SIZES[rank])]


def seen(model: PolicyModel, rank: int) -> dict[str, Tensor]:
    """All that a learner reads of a model about the images of one process, gradients among it."""
    images = images_of(rank)
    rows = model.encode([QUESTION] * len(images), images, toy_responses(len(images), seed=rank))
    own = model.log_probs(rows).log_probs
    own.sum().backward()  # type: ignore[no-untyped-call]
    values = model.values(rows)
    values.sum().backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        reference = model.log_probs(rows, "reference").log_probs
    trained = model.policy_parameters() | model.critic_parameters()
    gradients = {f"gradients/{name}": one.grad for name, one in trained.items() if one.grad is not None}
    return {"log_probs": own.detach(), "reference": reference, "values": values.detach()} | gradients


def learn(rank: int, port: int, folder: str) -> None:
    """One of the processes: the same passes with a whole backbone and with a sharded one."""
    torch.set_num_threads(1)
    options: dict[str, Any] = {"rank": rank, "world_size": PROCESSES, "timeout": timedelta(minutes=5)}
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", **options)
    policy.IMAGES_PER_PASS = 2  # type: ignore[misc]
    group = LearnerGroup(torch.device("cpu"))
    for name in NAMES:
        lora = LoRAOptions(rank=4, alpha=8, target_modules=FAMILIES[name].linear_layers)
        for kind, sharded_over in (("whole", None), ("sharded", group)):
            backbone = load_backbone(f"{folder}/{name}", "float32")
            model = PolicyModel(backbone, lora, sharded_over=sharded_over)
            with torch.no_grad():
                model.value_head.weight.fill_(0.1)
            with disturbed(model):
                save_file(seen(model, rank), f"{folder}/{name}-{kind}-{rank}.safetensors")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the processes have written."""
    folder = tmp_path_factory.mktemp("sharded")
    for name in NAMES:
        build(name, folder / name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(learn, (port, str(folder)), nprocs=PROCESSES)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("rank", range(PROCESSES))
@pytest.mark.parametrize("name", NAMES)
def test_a_sharded_backbone_gives_what_a_whole_one_does(name: str, rank: int, learnt: Path) -> None:
    whole, sharded = (load_file(learnt / f"{name}-{kind}-{rank}.safetensors") for kind in ("whole", "sharded"))
    assert whole.keys() == sharded.keys()
    assert float((whole["log_probs"] - whole["reference"]).abs().max()) > 0.1
    for what in ("log_probs", "reference", "values"):
        torch.testing.assert_close(sharded[what], whole[what], rtol=0, atol=1e-5)
    gradients = [what for what in whole if what.startswith("gradients/")]
    assert any("lora_B.policy" in what for what in gradients) and any("lora_B.critic" in what for what in gradients)
    for what in gradients:
        off = float((sharded[what] - whole[what]).norm())
        assert off <= 1e-4 * float(whole[what].norm())
