"""Checkpoints for benchmarks: wider and deeper than the tests', and whole."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.families import FAMILIES, configure
from benchmarks.tiny_families import build_wide_family, families
from fgaif_ray.rl.policy import PolicyModel
from fgaif_ray.vlm.backbone import load_backbone

HIDDEN, LAYERS = 128, 4


@pytest.mark.parametrize("name", [*FAMILIES, "gemma3"])
def test_a_wider_checkpoint_is_loaded_and_reads_its_image(name: str, tmp_path: Path) -> None:
    path = build_wide_family(name, tmp_path, HIDDEN, LAYERS)
    config = configure(name, path, "cpu", quick=True)
    backbone = load_backbone(path, "float32")
    assert (backbone.hidden_size, len(backbone.decoder.layers)) == (HIDDEN, LAYERS)
    model = PolicyModel(backbone, config.align.lora)
    images = [Image.new("RGB", (60, 60), colour) for colour in ("red", "blue")]
    with torch.no_grad():
        one, other = model.log_probs(model.encode(["What is shown?"] * 2, images, [[300, 301, 302]] * 2)).log_probs
    assert float((one - other).abs().max()) > 1e-4


def test_the_adapter_is_on_the_familys_layers(tmp_path: Path) -> None:
    config = configure("glm4v", str(tmp_path), "cuda", quick=False)
    assert set(config.align.lora.target_modules) == set(families()["glm4v"].linear_layers)
    assert (config.policy.dtype, config.align.rollout.engine.dtype) == ("bfloat16", "bfloat16")
