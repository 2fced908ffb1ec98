"""Reward models that know which images they were trained on."""

import json
from pathlib import Path

import torch

from actors.rewards.trainer import Reporter, train_missing
from fgaif_ray.config import Config
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rewards.data import RewardData, from_feedback, prepare_data
from fgaif_ray.rewards.domain import ImageDomain
from fgaif_ray.rewards.model import RewardModel
from fgaif_ray.shapes.render import render
from fgaif_ray.shapes.scenes import draw_scene
from fgaif_ray.vlm.backbone import Backbone
from support.reward_training import feedback_rows, silent

IMAGES = 40


def data_of_scenes(backbone: Backbone, folder: Path) -> RewardData:
    """Labelled responses to images of the embedded world, which are written into a folder."""
    rows = feedback_rows(folder, IMAGES)
    for index, row in enumerate(rows):
        render(draw_scene("train", index)).save(row.response.image)
    return prepare_data(backbone, from_feedback(rows, FACT_TYPES), 0.25, 0, silent)


def train_briefly(config: Config, folder: Path, backbone: Backbone, data: RewardData) -> dict[str, str]:
    """The reward models of a folder, by type."""
    train_missing(config, str(folder), backbone, data, Reporter(None))
    return {name: str(folder / name) for name in FACT_TYPES}


def without_domain(folder: Path) -> None:
    """Make of a reward model what an earlier release has left."""
    (folder / "domain.safetensors").unlink()
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in ("source", "domain", "settings"):
        del metrics[name]
    (folder / "metrics.json").write_text(json.dumps(metrics))


def narrow_domains(model: RewardModel) -> dict[str, ImageDomain]:
    """Domains, by type, that every image is out of by far."""
    hidden = model.backbone.hidden_size
    domain = ImageDomain(
        mean=torch.zeros(hidden), axes=torch.zeros(1, hidden), variances=torch.ones(1), rest=torch.tensor(1e-6)
    )
    return dict.fromkeys(model.fact_types, domain)
