"""The parts together: PPO on dense rewards teaches a tabular policy, and the KL penalty holds it."""

import torch
from torch import Tensor

from fgaif_ray.records import CONSISTENT, HALLUCINATED
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.rl.advantages import generalised_advantage_estimation, whiten
from fgaif_ray.rl.kl import kl_estimate, penalised_rewards
from fgaif_ray.rl.losses import policy_loss, value_loss
from fgaif_ray.rl.trajectories import Trajectory, TrajectoryBatch, collate, reward_trajectory

POSITIONS, VOCABULARY, RIGHT_TOKEN = 4, 5, 3


def rollout(logits: Tensor, samples: int, generator: torch.Generator) -> TrajectoryBatch:
    """Samples responses of four one-token segments; RIGHT_TOKEN is true, anything else hallucinated."""
    log_probs = logits.detach().log_softmax(dim=-1)  # [positions, vocabulary]
    ids = torch.multinomial(log_probs.exp(), samples, replacement=True, generator=generator).T  # [batch, positions]
    options = RewardOptions(value="argmax", weights={"existence": 1.0, "attribute": 0.0, "relation": 0.0})
    trajectories = []
    for row, tokens in enumerate(ids.tolist()):
        classes = [[0.0, 0.0, 0.0] for _ in tokens]
        for position, token in enumerate(tokens):
            classes[position][CONSISTENT if token == RIGHT_TOKEN else HALLUCINATED] = 1.0
        sampled = Trajectory(
            sample_id=str(row),
            image="none",
            prompt="",
            token_ids=tuple(tokens),
            behaviour_log_probs=tuple(log_probs[position, token].item() for position, token in enumerate(tokens)),
            finish_reason="stop",
            policy_version=0,
            response="".join(map(str, tokens)),
            segment_spans=tuple((position, position + 1) for position in range(POSITIONS)),
            token_ends=tuple(range(POSITIONS)),
        )
        # Every eighth reward is lost, as if the service had failed.
        trajectories.append(reward_trajectory(sampled, [[c, c, c] for c in classes], options) if row % 8 else sampled)
    return collate(trajectories, pad_token_id=0)


def train(beta: float, iterations: int = 25) -> Tensor:
    """The policy's final probabilities `[positions, vocabulary]`, from a uniform start."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(POSITIONS, VOCABULARY, requires_grad=True)
    values = torch.zeros(POSITIONS, requires_grad=True)
    reference = torch.zeros(POSITIONS, VOCABULARY).log_softmax(dim=-1)
    optimiser = torch.optim.Adam([logits, values], lr=0.1)
    positions = torch.arange(POSITIONS)
    for _ in range(iterations):
        batch = rollout(logits, 64, generator)
        old = logits.detach().log_softmax(dim=-1)[positions, batch.response_ids]  # [batch, response_tokens]
        old_values = values.detach().expand_as(old)  # [batch, response_tokens]
        kl = kl_estimate(old, reference[positions, batch.response_ids])
        rewards = penalised_rewards(batch.token_rewards, kl, beta, batch.loss_mask)
        advantages, returns = generalised_advantage_estimation(rewards, old_values, batch.loss_mask, 1.0, 0.95)
        advantages = whiten(advantages, batch.loss_mask)
        for indices, minibatch in batch.minibatches(32, generator):
            new = logits.log_softmax(dim=-1)[positions, minibatch.response_ids]  # [minibatch, response_tokens]
            policy, _ = policy_loss(
                new,
                old[indices],
                advantages[indices],
                minibatch.loss_mask,
                clip_range=0.2,
                behaviour_log_probs=minibatch.behaviour_log_probs,
            )
            critic, _ = value_loss(
                values.expand_as(new),
                old_values[indices],
                returns[indices],
                minibatch.loss_mask,
                clip_range=0.2,
            )
            optimiser.zero_grad()
            (policy + 0.5 * critic).backward()
            optimiser.step()
    return logits.detach().softmax(dim=-1)


def test_dense_rewards_teach_every_position() -> None:
    assert train(beta=0.0)[:, RIGHT_TOKEN].min() > 0.8


def test_a_strong_kl_penalty_holds_the_policy_at_the_reference() -> None:
    assert train(beta=50.0)[:, RIGHT_TOKEN].max() < 0.4
