"""What can be chosen about a PPO step: where the KL goes, schedules, budgets of tokens, several samples, staleness."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.ppo_steps import (
    IMAGE,
    PPO,
    PROMPT,
    difference,
    experience,
    group,
    new_model,
    toy_responses,
    trajectory,
    update,
)
from torch import Tensor

from fgaif_ray.config import AlignConfig, GuardConfig, KLConfig
from fgaif_ray.rl.checkpoint import LearnerState
from fgaif_ray.rl.guards import TrainingGuards
from fgaif_ray.rl.kept_policy import KeptPolicy
from fgaif_ray.rl.kl import FixedKLController
from fgaif_ray.rl.plan import PromptPlan, share_of
from fgaif_ray.rl.policy import PolicyModel
from fgaif_ray.rl.staleness import policy_log_probs
from fgaif_ray.rl.step import Experience, PPOUpdater, estimate, prepare
from fgaif_ray.rl.trajectories import collate
from fgaif_ray.rl.watch import busy_share


@pytest.fixture(scope="module")
def moved() -> PolicyModel:
    """A policy that is not the reference."""
    model = new_model()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for parameter in model.policy_parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def in_loss(model: PolicyModel, responses: list[list[int]], beta: float = 0.1) -> Experience:
    rows = model.encode([PROMPT] * len(responses), [IMAGE] * len(responses), responses)
    estimates = estimate(model, rows, 4)
    trajectories = [
        trajectory(index, ids, estimates.log_probs[index, : len(ids)].tolist()) for index, ids in enumerate(responses)
    ]
    batch = collate(trajectories, model.backbone.eos_token_id)
    return prepare(rows, batch, estimates, PPO, KLConfig(placement="loss"), beta, group())


def test_a_kl_in_the_loss_leaves_the_rewards_alone(moved: PolicyModel) -> None:
    data = in_loss(moved, toy_responses())
    earned = [1.0 if token == 77 else -0.2 for ids in toy_responses() for token in ids]
    assert data.metrics["reward/penalised"] == pytest.approx(sum(earned) / 8, abs=1e-5)
    assert data.kl_term is not None and data.kl_term.coefficient == 0.1
    assert experience(moved, toy_responses(4)).kl_term is None


def test_a_kl_in_the_loss_pulls_the_policy_to_the_reference(moved: PolicyModel) -> None:
    before, responses = moved.trained_state(), toy_responses()
    # Nothing to gain: what the policy does, it does for the KL.
    data = in_loss(moved, responses, beta=1.0)
    data = replace(data, advantages=torch.zeros_like(data.advantages))
    metrics = update(moved, data, PPO.model_copy(update={"epochs": 4, "learning_rate": 3e-4}))
    after = in_loss(moved, responses).metrics["kl/per_token_k3"]
    moved.load_trained_state(before)
    assert metrics["kl/loss"] == pytest.approx(data.metrics["kl/per_token"], rel=1.0)
    assert after < 0.8 * data.metrics["kl/per_token_k3"]


def test_a_schedule_needs_no_state_to_go_on() -> None:
    model, responses = new_model(), toy_responses(2)
    config = PPO.model_copy(update={"schedule": "cosine", "warmup_steps": 2, "epochs": 1})
    data = experience(model, responses)

    def scale(updater: PPOUpdater, step: int) -> float:
        return updater.update(data, step, torch.Generator().manual_seed(0), 1)["update/learning_rate_scale"]

    straight = PPOUpdater(model, config, group(), total_steps=6)
    scales = [scale(straight, step) for step in range(6)]
    assert scales[:3] == [0.5, 1.0, 1.0] and scales[5] < 0.2
    assert scale(PPOUpdater(model, config, group(), total_steps=6), 4) == scales[4]


def test_micro_batches_by_tokens_learn_what_micro_batches_by_rows_learn() -> None:
    responses = toy_responses()
    config = PPO.model_copy(update={"epochs": 1, "max_grad_norm": 1e9})

    def norms(**changes: int) -> dict[str, float]:
        model = new_model()
        return update(model, experience(model, responses), config.model_copy(update=changes), minibatches=1)

    rows, tokens = norms(micro_batch_size=8), norms(micro_batch_tokens=60)
    for name in ("update/policy_gradient_norm", "update/critic_gradient_norm", "policy/loss", "critic/loss"):
        assert tokens[name] == pytest.approx(rows[name], rel=1e-4, abs=1e-6)


def test_passes_without_gradients_keep_to_the_budget_too(moved: PolicyModel) -> None:
    responses = toy_responses()
    rows = moved.encode([PROMPT] * 8, [IMAGE] * 8, responses)
    by_rows, by_tokens = estimate(moved, rows, 8), estimate(moved, rows, 8, batch_tokens=60)
    torch.testing.assert_close(by_tokens.log_probs, by_rows.log_probs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(policy_log_probs(moved, rows, 8, 60), by_rows.log_probs, rtol=1e-4, atol=1e-5)


def test_samples_of_one_prompt_have_seeds_of_their_own() -> None:
    plan = PromptPlan([(str(index),) for index in range(10)], ["a", "b", "c"], seed=3)
    drawn = [draw for step in range(5) for draw in plan.draw(step, 8, 4)]
    assert [draw.images for draw in drawn[:4]] == [drawn[0].images] * 4
    assert len({draw.seed for draw in drawn}) == len({draw.sample_id for draw in drawn}) == 40
    single = [draw for step in range(5) for draw in plan.draw(step, 2)]
    assert [(draw.images, draw.prompt) for draw in drawn[::4]] == [(draw.images, draw.prompt) for draw in single]


def test_workers_share_prompts_and_keep_their_samples_together() -> None:
    draws = PromptPlan([(str(index),) for index in range(9)], ["a"], seed=3).draw(0, 18, 2)
    shares = [share_of(draws, rank, 4, 2) for rank in range(4)]
    assert sorted(draw.sample_id for share in shares for draw in share) == sorted(draw.sample_id for draw in draws)
    assert [len(share) for share in shares] == [6, 4, 4, 4]
    images = [{draw.images for draw in share} for share in shares]
    assert sum(map(len, images)) == len(set.union(*images)) == 9
    assert [share_of(draws, rank, 4) for rank in range(4)] == [draws[rank::4] for rank in range(4)]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rollout_batch_size": 10, "samples_per_prompt": 4}, "multiple of align.samples_per_prompt"),
        ({"rollout_batch_size": 8, "samples_per_prompt": 4, "num_workers": 3}, "align.num_workers"),
    ],
)
def test_batches_that_do_not_divide_are_refused(changes: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        AlignConfig(**changes)  # type: ignore[arg-type]


def state(model: PolicyModel) -> LearnerState:
    controller, guards = FixedKLController(0.1), TrainingGuards(GuardConfig())
    return LearnerState(model, PPOUpdater(model, PPO, group()), controller, guards, KeptPolicy(model))


def log_probs(model: PolicyModel, responses: list[list[int]]) -> Tensor:
    rows = model.encode([PROMPT] * len(responses), [IMAGE] * len(responses), responses)
    return policy_log_probs(model, rows, 4)


def test_the_policy_that_samples_ahead_is_kept_and_saved(tmp_path: Path) -> None:
    responses = toy_responses(4)
    straight = state(new_model())
    assert straight.previous is not None
    sampled_with = log_probs(straight.model, responses)
    straight.previous.keep()
    straight.updater.update(experience(straight.model, responses), 0, torch.Generator().manual_seed(0), 1)
    newest = log_probs(straight.model, responses)
    straight.save(tmp_path, 1)

    resumed = state(new_model())
    assert resumed.previous is not None and not resumed.previous.is_kept
    resumed.load(tmp_path)
    with resumed.previous.restored():
        assert torch.equal(log_probs(resumed.model, responses), sampled_with)
    assert torch.equal(log_probs(resumed.model, responses), newest)
    assert difference(straight.model.trained_state(), resumed.model.trained_state()) == 0
    assert not torch.equal(newest, sampled_with)


def test_a_run_that_does_not_sample_ahead_saves_no_previous_policy(tmp_path: Path) -> None:
    replace(state(new_model()), previous=None).save(tmp_path, 0)
    assert not (tmp_path / "previous_policy.safetensors").exists()
    assert json.loads((tmp_path / "state.json").read_text())["next_step"] == 0


def test_without_a_previous_policy_there_is_none_to_restore() -> None:
    with pytest.raises(ValueError, match="no policy has been kept"), KeptPolicy(new_model()).restored():
        pass


def test_time_that_phases_share_counts_once() -> None:
    assert busy_share([(1.0, 3.0), (0.0, 2.0)], 0.0, 4.0) == 0.75
    assert busy_share([(-5.0, 1.0), (3.0, 9.0)], 0.0, 4.0) == 0.5
    assert busy_share([(0.0, 4.0), (1.0, 2.0)], 0.0, 4.0) == 1.0
    assert busy_share([], 0.0, 4.0) == 0.0
