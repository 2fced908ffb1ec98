"""Untrained reward models and a configuration to serve them with, for the tests of the reward service."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fgaif_ray.config import Config, LoRAOptions
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rewards.data import Example, FeatureCache
from fgaif_ray.rewards.kinds import reward_tasks
from fgaif_ray.rewards.model import RewardModel
from fgaif_ray.rewards.model_files import load_reward_model, save_reward_model
from fgaif_ray.rewards.training import predict_heads
from fgaif_ray.vlm.backbone import load_backbone
from support.paths import ROOT

CHECKPOINT = str(ROOT / "fgaif_ray/shapes/checkpoints/policy")
PROMPT = "Describe this image."
RESPONSE = "There is a red circle at the left of the picture. A big blue square is above the small green triangle."


def save_reward_models(folder: Path, seed: int = 0, kind: Any = "separate") -> dict[str, str]:
    """Reward models whose adapters, heads and temperatures are random, so that no two heads agree."""
    model = RewardModel(load_backbone(CHECKPOINT))
    torch.manual_seed(seed)
    tasks = reward_tasks(kind, FACT_TYPES)
    for index, task in enumerate(tasks):
        model.add_adapter(task.name, task.heads, LoRAOptions(rank=4, alpha=8), seed + index, task.granularity)
    for name, parameter in model.backbone.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    for head in model.heads.values():
        torch.nn.init.normal_(head.weight, std=0.5)  # type: ignore[arg-type]
    model.temperatures = {head: 1.5 + place for place, head in enumerate(model.heads)}
    for task in tasks:
        for fact_type in task.fact_types:
            save_reward_model(model, fact_type, folder / fact_type, task.head_of(fact_type))
    return {fact_type: str(folder / fact_type) for fact_type in FACT_TYPES}


def offline_model(folders: dict[str, str], temperature_scaling: bool = False) -> RewardModel:
    return load_reward_model(load_backbone(CHECKPOINT), folders, temperature_scaling=temperature_scaling)


def service_config(run_dir: Path, **serve: Any) -> Config:
    return Config.model_validate(
        {
            "run": {"dir": str(run_dir)},
            "data": {"source": "shapes"},
            "policy": {"model": CHECKPOINT},
            "label": {"extractor": {"model": "m", "serve_model": CHECKPOINT}, "verifier": {"model": CHECKPOINT}},
            "rewards": {"backbone": CHECKPOINT, "dtype": "float32"},
            "serve": {"port": 0, "num_cpus": 0.2, "threads": 1, "max_batch_size": 16, **serve},
            "align": {"reward": {"weights": {"existence": 1.0, "attribute": 0.5, "relation": 2.0}}},
        }
    )


def picture(shade: int = 0, mode: str = "RGB", file_format: str = "PNG") -> bytes:
    image = Image.new("RGB", (60, 60), (240, 240, 240))
    image.paste((shade % 256, 30, 200 - shade % 200), (5 + shade % 20, 5, 30, 30))
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, format=file_format)
    return buffer.getvalue()


def predict(model: RewardModel, head: str, examples: Sequence[Example], features: FeatureCache) -> NDArray[np.float32]:
    """Class probabilities of one head; see ``predict_heads``."""
    return predict_heads(model, [head], examples, features)[head]
