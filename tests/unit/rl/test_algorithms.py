"""What each algorithm credits to tokens, against groups that were worked out by hand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.ppo_steps import CHECKPOINT, IMAGE, difference, group, toy_responses, trajectory
from support.ppo_steps import PPO as OPTIONS
from torch import Tensor

from fgaif_ray.config import KLConfig, LoRAOptions, load_config
from fgaif_ray.errors import UserError
from fgaif_ray.rl.algorithms import ALGORITHMS, Advantages, RewardedTokens
from fgaif_ray.rl.policy import PolicyModel
from fgaif_ray.rl.step import PPOUpdater, estimate, prepare
from fgaif_ray.rl.trajectories import Trajectory, collate
from fgaif_ray.vlm.backbone import load_backbone

PLAIN = OPTIONS.model_copy(update={"whiten_advantages": False})


def response(
    index: int, tokens: int, ends: Sequence[int], rewards: Sequence[Sequence[float]], image: str = "a.png", **more: Any
) -> Trajectory:
    """A response whose segments end at these tokens and earn this, by type."""
    paid = [0.0] * tokens
    for end, by_type in zip(ends, rewards, strict=True):
        paid[end] += sum(by_type)
    settings = {
        "image": image,
        "segment_spans": tuple((place, place + 1) for place in range(len(ends))),
        "token_ends": tuple(ends),
        "per_type_rewards": tuple(map(tuple, rewards)),
        "token_rewards": tuple(paid),
    }
    return trajectory(index, [70] * tokens, [0.0] * tokens, **(settings | more))


def credited(name: str, trajectories: Sequence[Trajectory], beside: Tensor | None = None, **more: Any) -> Advantages:
    batch = collate(trajectories, 2)
    given: dict[str, Any] = {"type_weights": (), "options": PLAIN, "group": group(), "values": None} | more
    rewards = batch.token_rewards if beside is None else batch.token_rewards + beside
    return ALGORITHMS[name].credit(RewardedTokens(batch=batch, rewards=rewards, mask=batch.loss_mask, **given))


def test_grpo_adds_normalised_rewards_from_the_tokens_segment_on() -> None:
    # Rewards of all segments: 1, -1, 1, 1 -> mean .5, deviation sqrt(.75).
    found = credited("grpo", [response(0, 4, [1, 3], [[1.0], [-1.0]]), response(1, 3, [0, 2], [[1.0], [1.0]])])
    good, bad = 0.5 / 0.75**0.5, -1.5 / 0.75**0.5
    expected = [[good + bad] * 2 + [bad] * 2, [2 * good, good, good, 0.0]]
    torch.testing.assert_close(found.advantages, torch.tensor(expected))
    assert found.returns is None


def test_grpo_normalises_each_type_by_itself_and_puts_its_weight_back() -> None:
    # The second type is ten times as loud; its weight says so.
    rewards = ([[1.0, 10.0]], [[-1.0, 10.0]], [[1.0, -10.0]], [[-1.0, -10.0]])
    found = credited("grpo", [response(i, 1, [0], one) for i, one in enumerate(rewards)], type_weights=(1.0, 2.0))
    torch.testing.assert_close(found.advantages[:, 0], torch.tensor([3.0, 1.0, -1.0, -3.0]))


def test_grpo_learns_nothing_where_all_segments_earn_the_same() -> None:
    found = credited("grpo", [response(i, 2, [1], [[0.7]]) for i in range(3)])
    assert int(found.advantages.count_nonzero()) == 0


def test_grpo_compares_what_is_paid_beside_segments_token_by_token() -> None:
    same = [response(0, 3, [0], [[0.5]]), response(1, 1, [0], [[0.5]])]
    penalty = torch.tensor([[0.0, 0.0, -0.4], [0.0, 0.0, 0.0]])
    found = credited("grpo", same, penalty)
    torch.testing.assert_close(found.advantages, torch.tensor([[-0.4, -0.4, -0.4], [0.4, 0.0, 0.0]]))


def test_rloo_takes_what_is_to_come_to_the_others_after_as_many_segments() -> None:
    found = credited("rloo", [response(0, 4, [1, 3], [[1.0], [-1.0]]), response(1, 2, [1], [[0.5]])])
    # To come: 0, 0, -1, -1 and .5, .5; the other one's after none and after one: .5, 0 and 0, -1.
    torch.testing.assert_close(found.advantages, torch.tensor([[-0.5, -0.5, -1.0, -1.0], [0.5, 0.5, 0.0, 0.0]]))


def test_rloo_leaves_a_response_out_of_its_own_baseline() -> None:
    found = credited("rloo", [response(i, 1, [0], [[reward]]) for i, reward in enumerate((3.0, 1.0, -1.0))])
    torch.testing.assert_close(found.advantages[:, 0], torch.tensor([3.0, 0.0, -3.0]))


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_images_are_compared_with_themselves_alone(name: str) -> None:
    one = [response(0, 1, [0], [[1.0]]), response(1, 1, [0], [[-1.0]])]
    other = [response(2, 1, [0], [[9.0]], "b.png"), response(3, 1, [0], [[5.0]], "b.png")]
    together, apart = credited(name, [*one, *other]), credited(name, one)
    torch.testing.assert_close(together.advantages[:2], apart.advantages)


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_a_response_without_reward_or_company_is_not_learnt_from(name: str) -> None:
    lost = {"token_rewards": None, "per_type_rewards": None, "reward_failure": "lost"}
    found = credited(name, [response(0, 2, [1], [[1.0]]), response(1, 2, [1], [[0.0]], **lost)])
    assert int(found.advantages.count_nonzero()) == 0


def test_whitening_reaches_rloo() -> None:
    given = [response(i, 1, [0], [[reward]]) for i, reward in enumerate((3.0, 1.0, -1.0))]
    found = credited("rloo", given, options=OPTIONS).advantages[:, 0]
    assert float(found.std(correction=0)) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_without_a_critic_nothing_of_it_is_built_trained_or_saved(name: str) -> None:
    model = PolicyModel(load_backbone(CHECKPOINT, "float32"), LoRAOptions(rank=4, alpha=8), critic=False)
    assert model.critic_parameters() == {}
    assert not any("critic" in key or "value" in key for key, _ in model.named_parameters())
    words = toy_responses(4)
    rows = model.encode(["Describe it."] * 4, [IMAGE] * 4, words)
    estimates = estimate(model, rows, 4)
    assert estimates.values is None
    rewarded = [response(i, len(ids), [len(ids) - 1], [[float(i % 2)]]) for i, ids in enumerate(words)]
    sampled = [
        replace(one, token_ids=tuple(ids), behaviour_log_probs=tuple(log_probs[: len(ids)].tolist()))
        for one, ids, log_probs in zip(rewarded, words, estimates.log_probs, strict=True)
    ]
    data = prepare(rows, collate(sampled, 2), estimates, OPTIONS, KLConfig(), 0.1, group(), ALGORITHMS[name])
    before = model.trained_state()
    updater = PPOUpdater(model, OPTIONS, group())
    metrics = updater.update(data, 0, torch.Generator().manual_seed(0), 1)
    assert difference(before, model.trained_state()) > 0
    assert not any("critic" in key for key in [*metrics, *data.metrics, *updater.state_dict()])


def test_groups_need_several_samples_of_a_prompt() -> None:
    with pytest.raises(UserError, match=r"align\.algorithm=grpo compares responses .* align\.samples_per_prompt"):
        load_config("configs/shapes.yaml", ["align.algorithm=grpo", "align.samples_per_prompt=1"])
