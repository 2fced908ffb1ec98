"""A tiny policy, responses whose rewards a test can foresee, and PPO steps on them."""

import torch
from PIL import Image
from torch import Tensor

from fgaif_ray.config import GuardConfig, KLConfig, LoRAOptions, PPOConfig
from fgaif_ray.rl.checkpoint import LearnerState
from fgaif_ray.rl.guards import TrainingGuards
from fgaif_ray.rl.kl import AdaptiveKLController
from fgaif_ray.rl.policy import PolicyModel
from fgaif_ray.rl.step import Experience, PPOUpdater, estimate, prepare
from fgaif_ray.rl.trajectories import Trajectory, collate
from fgaif_ray.vlm.backbone import load_backbone
from fgaif_ray.vlm.group import LearnerGroup
from support.paths import ROOT

CHECKPOINT = str(ROOT / "fgaif_ray/shapes/checkpoints/policy")
REWARDED = 77
PROMPT = "Describe this image in detail."
PPO = PPOConfig(epochs=2, minibatch_size=4, micro_batch_size=2, learning_rate=1e-3, critic_learning_rate=1e-3)
IMAGE = Image.new("RGB", (60, 60), "white")


def new_model() -> PolicyModel:
    return PolicyModel(load_backbone(CHECKPOINT, "float32"), LoRAOptions(rank=4, alpha=8))


def group() -> LearnerGroup:
    return LearnerGroup(torch.device("cpu"))


def toy_responses(count: int = 8, seed: int = 0) -> list[list[int]]:
    """Random words of one to six tokens; about every other one says the token that is rewarded."""
    generator = torch.Generator().manual_seed(seed)
    responses = []
    for index in range(count):
        words = torch.randint(60, 120, (1 + index % 6,), generator=generator).tolist()
        if index % 2:
            words[-1] = REWARDED
        responses.append(words)
    return responses


def trajectory(index: int, ids: list[int], log_probs: list[float], **changes: object) -> Trajectory:
    rewards = tuple(1.0 if token == REWARDED else -0.2 for token in ids)
    settings = {
        "sample_id": str(index),
        "image": "white.png",
        "prompt": PROMPT,
        "token_ids": tuple(ids),
        "behaviour_log_probs": tuple(log_probs),
        "finish_reason": "stop",
        "policy_version": 0,
        "response": "",
        "segment_spans": (),
        "token_ends": (),
        "token_rewards": rewards,
    }
    return Trajectory(**(settings | changes))  # type: ignore[arg-type]


def experience(
    model: PolicyModel,
    responses: list[list[int]],
    config: PPOConfig = PPO,
    lost: frozenset[int] = frozenset(),
    learners: LearnerGroup | None = None,
) -> Experience:
    rows = model.encode([PROMPT] * len(responses), [IMAGE] * len(responses), responses)
    estimates = estimate(model, rows, 4)
    trajectories = []
    for index, ids in enumerate(responses):
        changes: dict[str, object] = {"token_rewards": None, "reward_failure": "lost"} if index in lost else {}
        trajectories.append(trajectory(index, ids, estimates.log_probs[index, : len(ids)].tolist(), **changes))
    batch = collate(trajectories, model.backbone.eos_token_id)
    return prepare(rows, batch, estimates, config, KLConfig(), 0.1, learners or group())


def update(model: PolicyModel, data: Experience, config: PPOConfig = PPO, minibatches: int = 2) -> dict[str, float]:
    return PPOUpdater(model, config, group()).update(data, 0, torch.Generator().manual_seed(0), minibatches)


def difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def learner_state(model: PolicyModel, updater: PPOUpdater) -> LearnerState[PPOUpdater]:
    return LearnerState(model, updater, AdaptiveKLController(0.1, 6.0, 100), TrainingGuards(GuardConfig()))
