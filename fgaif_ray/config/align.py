"""Sections of PPO."""

from typing import Literal

from pydantic import Field

from fgaif_ray.config.base import EngineConfig, LoRAOptions, Section


class PPOConfig(Section):
    """The PPO update (FGAIF section 4.1; defaults that differ from the paper: see configs/paper.yaml)."""

    epochs: int = Field(default=2, ge=1)
    """Passes over each rollout batch."""
    minibatch_size: int = Field(default=256, ge=1)
    """Responses per optimiser step, over all workers."""
    micro_batch_size: int = Field(default=16, ge=1)
    """Responses per forward and backward pass of one worker."""
    learning_rate: float = Field(default=1e-5, gt=0)
    critic_learning_rate: float = Field(default=1e-5, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    clip: float = Field(default=0.2, gt=0)
    value_clip: float = Field(default=0.2, gt=0)
    value_coefficient: float = Field(default=0.1, ge=0)
    entropy_coefficient: float = Field(default=0.0, ge=0)
    gamma: float = Field(default=1.0, gt=0, le=1)
    lambda_: float = Field(default=0.95, ge=0, le=1)
    whiten_advantages: bool = True
    max_grad_norm: float = Field(default=1.0, gt=0)
    importance_cap: float = Field(default=2.0, gt=0)
    """Truncation of the importance weights between the rollout engine's and the learner's log-probabilities."""


class RewardComposition(Section):
    """How verdicts become token rewards."""

    value: Literal["expected", "argmax"] = "expected"
    weights: dict[str, float] = Field(default={"existence": 1.0, "attribute": 1.0, "relation": 1.0})
    granularity: Literal["segment", "response"] = "segment"
    """``response`` is the w-Coarse ablation: one reward per response."""
    normalise_by_segments: bool = False
    missing_eos_penalty: float = Field(default=1.0, ge=0)
    """Subtracted at the last token of a response that did not end by itself."""
    failure: Literal["mask", "drop", "fail"] = "mask"
    """What becomes of a sample whose reward could not be had."""


class KLConfig(Section):
    """The pull towards the adapter-free backbone."""

    coefficient: float = Field(default=0.1, ge=0)
    estimator: Literal["k1", "k2", "k3"] = "k1"
    target: float | None = Field(default=None, gt=0)
    """Sum of the per-token KL of a response that an adaptive controller steers to; None keeps the coefficient."""
    horizon: int = Field(default=10000, ge=1)


class RolloutConfig(Section):
    """The group of vLLM rollout workers."""

    workers: int = Field(default=1, ge=1)
    max_tokens: int = Field(default=896, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    sync: Literal["adapter", "merged"] = "adapter"
    """How a new policy reaches the engine: its adapter, or merged weights (faster on CPU)."""
    log_prob_tolerance: float = Field(default=0.05, gt=0)
    """Largest mean difference between the engine's and the learner's log-probabilities of the same tokens after a
    sync."""
    engine: EngineConfig = EngineConfig()


class AlignConfig(Section):
    """PPO on dense rewards."""

    steps: int = Field(default=100, ge=1)
    rollout_batch_size: int = Field(default=512, ge=1)
    lora: LoRAOptions = LoRAOptions()
    ppo: PPOConfig = PPOConfig()
    reward: RewardComposition = RewardComposition()
    kl: KLConfig = KLConfig()
    rollout: RolloutConfig = RolloutConfig()
    critic_from_reward: Literal["existence", "attribute", "relation"] | None = None
    """Start the critic's adapter from this reward model (FGAIF section 4.1: the object one)."""
    checkpoint_every: int = Field(default=10, ge=1)
    """Steps between checkpoints, the most that an interruption can lose."""
    log_samples_every: int = Field(default=10, ge=1)
    num_workers: int = Field(default=1, ge=1)
    cpus_per_worker: float = Field(default=1, gt=0)
    gpus_per_worker: float = Field(default=0, ge=0)
    threads: int | None = Field(default=None, ge=1)
