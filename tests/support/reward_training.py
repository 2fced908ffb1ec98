"""Feedback whose labels a tiny reward model can learn, and trainings on it."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fgaif_ray import storage
from fgaif_ray.config import Config, LoRAOptions, RewardsConfig
from fgaif_ray.records import ABSENT, CONSISTENT, FACT_TYPES, HALLUCINATED, Feedback, Response, feedback_schema
from fgaif_ray.rewards.checkpoint import TrainingCheckpoint
from fgaif_ray.rewards.data import FeatureCache, RewardData
from fgaif_ray.rewards.kinds import RewardTask
from fgaif_ray.rewards.model import RewardModel
from fgaif_ray.rewards.training import train_reward_model
from fgaif_ray.vlm.backbone import load_backbone
from support.labelled import segment_by_ai
from support.paths import ROOT

CHECKPOINT = str(ROOT / "fgaif_ray/shapes/checkpoints/annotator")
OPTIONS = RewardsConfig(
    backbone=CHECKPOINT,
    dtype="float32",
    lora=LoRAOptions(rank=8, alpha=16),
    learning_rate=5e-3,
    batch_size=8,
    epochs=12,
    patience=12,
    validation_fraction=0.25,
)
COLORS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


def feedback_rows(folder: Path, images: int = 16) -> list[Feedback]:
    """Rows whose labels follow from the image and the place in the text: pictures of one colour, all called red.

    The three types have different labels, so a model of one type is wrong as to the others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(images):
        color = list(COLORS)[index % 2]
        path = folder / f"{index}.png"
        red, green, blue = COLORS[color]
        Image.new("RGB", (60, 60), (red, green + index, blue)).save(path)
        truth = CONSISTENT if color == "red" else HALLUCINATED
        segments = [
            ("The whole image is red, ", (truth, ABSENT, CONSISTENT)),
            ("and that is all there is.", (ABSENT, HALLUCINATED, truth)),
        ]
        text = "".join(part for part, _ in segments)
        starts = [0, len(segments[0][0])]
        response = Response(
            sample_id=f"{index:04d}",
            image=str(path),
            image_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            prompt="Describe this image in detail.",
            text=text,
            finish_reason="stop",
            model="policy",
        )
        labelled = tuple(
            segment_by_ai(part, labels, start=start) for start, (part, labels) in zip(starts, segments, strict=True)
        )
        rows.append(Feedback(response=response, segments=labelled, annotator="{}"))
    return rows


def silent(*_: Any) -> None:
    """A progress callback that shows nothing."""


def train(data: RewardData, fact_type: str = "existence", **changes: Any) -> tuple[RewardModel, dict[str, Any]]:
    model = RewardModel(load_backbone(CHECKPOINT, "float32"))
    options = OPTIONS.model_copy(update=changes)
    features = FeatureCache(model.backbone)
    task = RewardTask(fact_type, (fact_type,), (fact_type,))
    return model, train_reward_model(model, task, data, features, options, 0, silent)[fact_type]


class Interrupted(Exception):
    """Ends a training from outside."""


def interrupted_training(data: RewardData, folder: Path, task: RewardTask, after_epoch: int, seed: int) -> None:
    """Leave what a training leaves that dies in the epoch after ``after_epoch``."""
    model = RewardModel(load_backbone(CHECKPOINT, "float32"))
    options = OPTIONS.model_copy(update={"epochs": 3})

    def on_progress(count: int, note: str) -> None:
        if note.startswith(f"epoch {after_epoch + 1}/"):
            raise Interrupted

    checkpoint = TrainingCheckpoint(str(folder), task.name)
    with pytest.raises(Interrupted):
        train_reward_model(model, task, data, FeatureCache(model.backbone), options, seed, on_progress, checkpoint)


# The job


def job_config(run_dir: Path, **rewards: Any) -> Config:
    return Config.model_validate(
        {
            "run": {"dir": str(run_dir)},
            "ray": {"num_cpus": 2, "object_store_gib": 0.1},
            "data": {"source": "shapes"},
            "policy": {"model": CHECKPOINT},
            "label": {
                "extractor": {"base_url": "http://127.0.0.1:1/v1", "model": "m"},
                "verifier": {"model": CHECKPOINT},
            },
            "rewards": OPTIONS.model_copy(
                update={"epochs": 3, "cpus_per_worker": 0.5, "threads": 1, **rewards}
            ).model_dump(),
        }
    )


def publish_feedback(run_dir: Path, rows: list[Feedback]) -> storage.Stage:
    stage = storage.Stage(str(run_dir), "feedback", "f" * 16)
    stage.begin()
    storage.write_part(stage.partial, [row.to_row() for row in rows], feedback_schema(FACT_TYPES))
    stage.publish({"rows": len(rows)})
    return stage
