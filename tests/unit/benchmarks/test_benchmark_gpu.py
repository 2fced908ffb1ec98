"""The benchmark for bare GPU machines: it runs where ray, vllm and openai are not, and counts operations right."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_bare import adapted_layers
from benchmarks.gpu_flops import ModelWork, peak_tflops
from benchmarks.gpu_model import SHAPES, build_backbone, encode_responses
from fgaif_ray.config import LoRAOptions
from fgaif_ray.rl.policy import PolicyModel

KEYS = {
    "update_over_torch",
    "scoring_over_torch",
    "update_tokens_per_s",
    "update_mfu",
    "scoring_tokens_per_s",
    "scoring_mfu",
    "peak_memory_gib",
    "device",
}
ALONE = """
import sys
sys.modules.update(dict.fromkeys(("ray", "vllm", "openai")))
from benchmarks import gpu
gpu.main(sys.argv[1:])
"""


def test_it_runs_without_ray_vllm_and_openai(repository: Path) -> None:
    options = ["--size=tiny", "--device=cpu", "--responses=2", "--tokens=9", "--micro-batch=1", "--rank=2"]
    result = subprocess.run(
        [sys.executable, "-c", ALONE, *options, "--repeats=1", "--checkpointing", "--peak-tflops=0.001"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=repository,
    )
    figures = json.loads(result.stdout.splitlines()[-1])
    assert set(figures) == KEYS
    assert figures.pop("device") == "CPU"
    assert all(figure > 0 for figure in figures.values())


@pytest.fixture(scope="module")
def model() -> PolicyModel:
    return PolicyModel(build_backbone(SHAPES["tiny"], torch.device("cpu"), torch.float32, 0), LoRAOptions(rank=4))


def test_counted_products_are_those_that_torch_counts(model: PolicyModel) -> None:
    rows = encode_responses(model, SHAPES["tiny"], [11], 0)
    with FlopCounterMode(display=False) as counter:
        model.log_probs(rows, "reference")
    by_operation = counter.get_flop_counts()["Global"]
    products = sum(count for operation, count in by_operation.items() if "attention" not in str(operation))
    work = ModelWork.of(model.backbone)
    length = int(rows.lengths[0])
    assert work.forward([length], scored=11, adapted=False) - work.attention * length**2 == products


def test_the_sizes_of_the_adapter_are_counted(model: PolicyModel) -> None:
    assert len(adapted_layers(model.backbone)) == 7 * SHAPES["tiny"].layers
    assert ModelWork.of(model.backbone).adapter == sum(value.numel() for value in model.policy_parameters().values())


def test_the_large_shape_is_that_of_llava_1_5_7b() -> None:
    backbone = build_backbone(SHAPES["7b"], torch.device("meta"), torch.bfloat16, 0)
    assert sum(parameter.numel() for parameter in backbone.model.parameters()) == 7_063_427_072
    config = backbone.model.config
    assert (config.image_token_id, backbone.eos_token_id, config.image_seq_length) == (32000, 2, 576)


@pytest.mark.parametrize(
    ("name", "peak"), [("NVIDIA H100 80GB HBM3", 989.0), ("NVIDIA H100 PCIe", 756.0), ("another", None)]
)
def test_the_peak_is_that_of_the_device(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak
