"""The shipped GPU configurations start: every stage asks Ray for the configuration's own GPUs.

The GPUs are numbers (`ray.logical_gpus`), models and data are those of the embedded world, made small; placement,
worker numbers, sync and data types are the configuration's.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.paths import ROOT

from fgaif_ray.config import Config

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow]

CHECKPOINTS = "fgaif_ray/shapes/checkpoints"
ENGINE = {"max_model_len": 512, "max_num_seqs": 16, "kv_cache_gib": 0.1, "enforce_eager": True, "threads": 1}
"""What vLLM's CPU build needs."""
SMALL: dict[str, Any] = {
    "data": {
        "source": "shapes",
        "path": None,
        "annotations": None,
        "sample_images": 16,
        "align_images": 8,
        "evaluate_images": 5,
        "prompts": ["Describe this image in detail."],
    },
    "policy": {"model": f"{CHECKPOINTS}/policy"},
    "sample": {"max_tokens": 48, "engine": ENGINE},
    "label": {
        "extractor": {
            "base_url": None,
            "serve_model": f"{CHECKPOINTS}/extractor",
            "model": "extractor",
            "compact_json": False,
            "prompt": "extract-short-v2",
            "mode": "segment",
            "max_tokens": 160,
            "price": None,
            "budget": None,
            "requests_per_minute": None,
            "tokens_per_minute": None,
            "engine": ENGINE,
        },
        "verifier": {"model": f"{CHECKPOINTS}/annotator", "prompt": "verify-v1", "engine": ENGINE},
    },
    "rewards": {
        "backbone": f"{CHECKPOINTS}/annotator",
        "quantisation": "none",
        "epochs": 1,
        "lora": {"rank": 4},
        "batch_size": 8,
        "threads": 1,
    },
    "serve": {"port": 0, "threads": 1},
    "align": {
        "steps": 1,
        "rollout_batch_size": 8,
        "lora": {"rank": 4},
        "ppo": {"minibatch_size": 8, "micro_batch_size": 2},
        "rollout": {"max_tokens": 48, "engine": ENGINE},
        "threads": 1,
    },
    "evaluate": {"max_tokens": 48, "engine": ENGINE},
}
PLACEMENT = ("num_gpus", "gpus_per_worker", "num_workers", "workers", "engines", "placement", "sync", "dtype")


def merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {
        **tree,
        **{
            key: merged(tree[key], value) if isinstance(value, dict) and isinstance(tree.get(key), dict) else value
            for key, value in changes.items()
        },
    }


def placement(tree: Any, path: str = "") -> dict[str, Any]:
    """Every setting of a configuration that says where something runs."""
    if not isinstance(tree, dict):
        return {}
    found = {f"{path}{key}": value for key, value in tree.items() if key in PLACEMENT}
    for key, value in tree.items():
        found |= placement(value, f"{path}{key}.")
    return found


@pytest.mark.parametrize("name", ["llava-1.5-7b", "paper"])
def test_a_gpu_configuration_goes_through_every_stage(name: str, tmp_path: Path) -> None:
    tree = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    small = merged(tree, SMALL)
    small["run"] = {"dir": str(tmp_path / "run"), "seed": 0}
    small["ray"] = {"num_cpus": 64, "logical_gpus": 8, "object_store_gib": 0.2}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(small))
    shipped, used = (placement(Config.model_validate(one).model_dump()) for one in (tree, small))
    assert {key: used[key] for key in shipped} == shipped
    assert sum("gpu" in key and value > 0 for key, value in shipped.items()) >= 5
    result = subprocess.run(
        [sys.executable, "-m", "jobs.pipeline", "--config", str(file)],
        capture_output=True,
        text=True,
        env=os.environ | {"RAY_TMPDIR": "/tmp"},
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert (tmp_path / "run" / "report.html").exists()
