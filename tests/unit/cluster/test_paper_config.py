"""The configurations for GPUs against the settings of the FGAIF paper (arXiv 2404.05046, section 4.1)."""

import re
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from fgaif_ray.config import Config, load_config

PAPER: dict[str, Any] = {
    "data.sample_images": 3500,
    "data.align_images": 14000,
    "data.prompts": ("Describe this image in detail.",),
    "sample.temperature": 1.0,
    "sample.top_p": 1.0,
    "sample.max_tokens": 896,
    "label.extractor.model": "gpt-3.5-turbo-0125",
    "label.extractor.mode": "segment",
    "label.verifier.model": "llava-hf/llava-1.5-13b-hf",
    "rewards.kind": "separate",
    "rewards.backbone": "llava-hf/llava-1.5-13b-hf",
    "rewards.lora.rank": 64,
    "rewards.lora.alpha": 16,
    "rewards.learning_rate": 2e-5,
    "rewards.batch_size": 32,
    "align.rollout_batch_size": 512,
    "align.lora.rank": 64,
    "align.lora.alpha": 16,
    "align.ppo.epochs": 2,
    "align.ppo.minibatch_size": 256,
    "align.ppo.learning_rate": 1e-7,
    "align.ppo.critic_learning_rate": 1e-7,
    "align.ppo.clip": 0.2,
    "align.ppo.value_clip": 0.2,
    "align.ppo.value_coefficient": 0.1,
    "align.ppo.gamma": 1.0,
    "align.ppo.lambda_": 1.0,
    "align.reward.value": "argmax",
    "align.reward.weights": {"existence": 1.0, "attribute": 1.0, "relation": 1.0},
    "align.reward.granularity": "segment",
    "align.kl.coefficient": 0.1,
    "align.kl.estimator": "k1",
    "align.kl.target": None,
    "align.rollout.temperature": 1.0,
    "align.rollout.max_tokens": 896,
}
OWN: dict[str, Any] = {
    "label.extractor.model": "gpt-4o-mini",
    "label.extractor.mode": "response",
    "align.rollout_batch_size": 256,
    "align.ppo.minibatch_size": 128,
    "align.ppo.learning_rate": 1e-5,
    "align.ppo.critic_learning_rate": 1e-5,
    "align.ppo.value_clip": None,
    "align.ppo.lambda_": 0.95,
    "align.reward.value": "expected",
}
"""Where ``configs/llava-1.5-7b.yaml`` goes another way."""
TARGETS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def settings(config: Config) -> dict[str, Any]:
    return {key: reduce(getattr, key.split("."), config) for key in PAPER}


@pytest.mark.parametrize(("name", "differences"), [("paper", {}), ("llava-1.5-7b", OWN)])
def test_settings_are_the_papers(repository: Path, name: str, differences: dict[str, Any]) -> None:
    config = load_config(repository / "configs" / f"{name}.yaml")
    assert settings(config) == PAPER | differences
    assert set(config.rewards.lora.target_modules) == set(config.align.lora.target_modules) == TARGETS


def test_every_setting_of_the_papers_file_says_where_it_comes_from(repository: Path) -> None:
    unsaid, above = [], ""
    for line in (repository / "configs" / "paper.yaml").read_text(encoding="utf-8").splitlines():
        setting, _, comment = line.strip().partition("#")
        if not setting:
            above += comment
            continue
        value = setting.partition(":")[2].strip()
        if value and not value.startswith(("&", "*")) and not re.search("paper|official|ours", comment + above):
            unsaid.append(line)
        above = ""
    assert unsaid == []
