"""A PPO run of a few steps on the embedded world, with untrained reward models."""

import os
from pathlib import Path

from fgaif_ray.config import Config
from support.reward_helpers import CHECKPOINT, service_config

STEPS = 3
BATCH = 8
ENGINE = {
    "dtype": "float32",
    "max_model_len": 256,
    "max_num_seqs": 16,
    "kv_cache_gib": 0.1,
    "enforce_eager": True,
    "num_cpus": 0.5,
    "threads": 1,
}


def align_config(run_dir: Path, sync: str = "merged", tolerance: float = 1e-4, ahead: bool = False) -> Config:
    tree = service_config(run_dir, placement="shared").model_dump(mode="json")
    tree["data"] |= {
        "sample_images": 1,
        "align_images": 12,
        "evaluate_images": 1,
        "prompts": ["Describe it.", "What is it?"],
    }
    # Relative, as people write it: every process of the run must read it from the same folder.
    tree["policy"] = {"model": os.path.relpath(CHECKPOINT), "dtype": "float32"}
    tree["align"] |= {
        "steps": STEPS,
        "rollout_batch_size": BATCH,
        "lora": {"rank": 4, "alpha": 8},
        "checkpoint_every": 1,
        "cpus_per_worker": 0.5,
        "threads": 1,
    }
    rates = {"learning_rate": 1e-2, "critic_learning_rate": 1e-3}
    tree["align"]["ppo"] |= {"minibatch_size": 4, "micro_batch_size": 4, **rates}
    rollout = {"max_tokens": 16, "sync": sync, "log_prob_tolerance": tolerance, "engine": ENGINE}
    tree["align"]["rollout"] |= rollout
    if ahead:
        tree["align"]["rollout"]["max_staleness"] = 1
        tree["align"]["samples_per_prompt"] = 2
        tree["align"]["ppo"] |= {"micro_batch_tokens": 120, "schedule": "linear"}
        tree["align"]["kl"]["placement"] = "loss"
        tree["align"] |= {"evaluate_every": 2, "evaluate_images": 4, "best_by": "reward/total"}
    return Config.model_validate(tree)
