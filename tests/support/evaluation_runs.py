"""What tests of the evaluation job share: a small configuration and a policy that says something else."""

from pathlib import Path

import torch

from fgaif_ray import storage
from fgaif_ray.config import Config, load_config

IMAGES = 6


def configure(repository: Path, folder: Path, *changes: str) -> Config:
    return load_config(
        repository / "configs" / "shapes.yaml",
        [
            f"run.dir={folder}",
            f"policy.model={repository}/fgaif_ray/shapes/checkpoints/policy",
            "data.sample_images=1",
            "data.align_images=1",
            f"data.evaluate_images={IMAGES}",
            "evaluate.max_tokens=12",
            "evaluate.engine.max_num_seqs=16",
            "evaluate.engine.max_model_len=128",
            "evaluate.engine.kv_cache_gib=0.1",
            "evaluate.engine.threads=1",
            *changes,
        ],
    )


def publish_policy(config: Config) -> None:
    """A policy stage with an adapter that changes what the model says."""
    from peft import LoraConfig, get_peft_model

    from fgaif_ray.vlm.backbone import load_backbone

    stage = storage.Stage(config.run.dir, "policy", "adapter-of-the-test")
    stage.begin()
    backbone = load_backbone(config.policy.model)
    torch.manual_seed(0)
    lora = LoraConfig(
        r=16,
        lora_alpha=96,
        target_modules=r".*language_model\..*\.(?:q_proj|v_proj|down_proj)",
        init_lora_weights=False,
        base_model_name_or_path=config.policy.model,
    )
    get_peft_model(backbone.model, lora).save_pretrained(stage.partial)
    stage.publish({})
