"""A run with a random aligned adapter, random reward models, and labels of real images of the embedded world."""

import dataclasses
import json
from pathlib import Path

import torch

from fgaif_ray import storage
from fgaif_ray.config import Config, LoRAOptions, load_config
from fgaif_ray.records import CONSISTENT, FACT_TYPES, HALLUCINATED, feedback_schema
from fgaif_ray.rl.policy import PolicyModel
from fgaif_ray.shapes.render import render
from fgaif_ray.shapes.scenes import draw_scene
from fgaif_ray.vlm.backbone import load_backbone
from support.audit_data import feedback_row
from support.report_run import evaluate_captions, publish, reward_figures
from support.reward_helpers import CHECKPOINT, save_reward_models

IMAGES = 6


def published_config(run: Path, *settings: str) -> Config:
    return load_config(
        "configs/shapes.yaml",
        [
            f"run.dir={run}",
            f"policy.model={CHECKPOINT}",
            f"rewards.backbone={CHECKPOINT}",
            f"run.fact_types=[{','.join(FACT_TYPES)}]",
            *settings,
        ],
    )


def write_published_run(run: Path) -> Config:
    """Write ``policy/``, ``rewards/``, ``feedback/`` and ``evaluation/``."""
    config = published_config(run)
    policy = storage.Stage(str(run), "policy", "any")
    policy.begin()
    model = PolicyModel(load_backbone(CHECKPOINT, "float32"), LoRAOptions(rank=4, alpha=8))
    with torch.no_grad():
        for parameter in model.policy_parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    model.save_policy(policy.partial)
    storage.write_bytes(f"{policy.partial}/README.md", f"---\ntags: [x]\n---\n# Policy\n\nOf `{CHECKPOINT}`.".encode())
    policy.publish({})
    rewards = storage.Stage(str(run), "rewards", "any")
    rewards.begin()
    save_reward_models(Path(rewards.partial))
    for seed, name in enumerate(FACT_TYPES):
        figures = reward_figures(seed) | {"backbone": CHECKPOINT, "count": 300}
        storage.write_json(f"{rewards.partial}/{name}/metrics.json", figures)
    rewards.publish({})
    feedback = storage.Stage(str(run), "feedback", "any")
    feedback.begin()
    rows = []
    for number in range(IMAGES):
        path = run / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        render(draw_scene("heldout", number)).save(path)
        said = [("A red circle, ", (CONSISTENT, HALLUCINATED, 0)), ("and a star.", (CONSISTENT, 0, 0))]
        row = dataclasses.replace(feedback_row(number, str(path), said), annotator=json.dumps({"model": CHECKPOINT}))
        rows.append(row.to_row())
    storage.write_part(feedback.partial, rows, feedback_schema(FACT_TYPES))
    metrics = {"rows": IMAGES, "agreement": {name: {"balanced_accuracy": 0.875} for name in FACT_TYPES}}
    storage.write_bytes(f"{feedback.partial}/metrics.json", json.dumps(metrics).encode())
    feedback.publish({})
    answers, _, measured = evaluate_captions(run / "evaluated", 4, None)
    publish(run, "evaluation", {"metrics.json": measured}, answers)
    return config
