"""Trajectories and padded batches; a missing reward is never a zero."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.rl.trajectories import (
    Trajectory,
    TrajectoryBatch,
    collate,
    facts_per_response,
    reward_trajectory,
)

OPTIONS = RewardOptions(weights=dict.fromkeys(FACT_TYPES, 1.0))
TRUE_FACT, WRONG_FACT, NO_FACT = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)


def trajectory(sample_id: str = "a", tokens: int = 3, **changes: Any) -> Trajectory:
    fields: dict[str, Any] = {
        "sample_id": sample_id,
        "image": f"images/{sample_id}.png",
        "prompt": "Describe this image in detail.",
        "token_ids": tuple(range(10, 10 + tokens)),
        "behaviour_log_probs": tuple(-0.1 * (i + 1) for i in range(tokens)),
        "finish_reason": "stop",
        "policy_version": 4,
        "response": "A red ball.",
        "segment_spans": ((0, 11),),
        "token_ends": (tokens - 1,),
    }
    return Trajectory(**(fields | changes))


def rewarded(sample_id: str = "a", tokens: int = 3) -> Trajectory:
    return reward_trajectory(trajectory(sample_id, tokens), ((TRUE_FACT, TRUE_FACT, NO_FACT),), OPTIONS)


def test_rewarding_a_trajectory_keeps_probabilities_types_and_tokens() -> None:
    result = reward_trajectory(trajectory(), ((TRUE_FACT, WRONG_FACT, TRUE_FACT),), OPTIONS)
    assert result.class_probabilities == ((TRUE_FACT, WRONG_FACT, TRUE_FACT),)
    assert result.per_type_rewards == ((1.0, -1.0, 1.0),)
    assert result.token_rewards == (0.0, 0.0, 1.0)


def test_a_response_without_segments_is_rewarded_with_zeros() -> None:
    silent = trajectory(response="", segment_spans=(), token_ends=())
    assert reward_trajectory(silent, (), OPTIONS).token_rewards == (0.0, 0.0, 0.0)


def test_probabilities_for_another_number_of_segments_are_refused() -> None:
    with pytest.raises(ValueError, match="must be"):
        reward_trajectory(trajectory(), ((TRUE_FACT,) * 3,) * 2, OPTIONS)


@pytest.mark.parametrize(
    "changes",
    [
        {"token_ids": ()},
        {"behaviour_log_probs": (-0.1,)},
        {"token_ends": (0, 1)},
        {"token_rewards": (1.0,)},
        {"behaviour_log_probs": (-0.1, float("-inf"), -0.1)},
        {"token_rewards": (0.0, math.nan, 0.0)},
    ],
)
def test_an_inconsistent_trajectory_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="trajectory a"):
        trajectory(**changes)


def test_a_trajectory_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        trajectory().policy_version = 5  # type: ignore[misc]


def test_collate_pads_on_the_right() -> None:
    batch = collate([rewarded("a", 3), rewarded("b", 1)], pad_token_id=-7)
    assert batch.response_ids.tolist() == [[10, 11, 12], [10, -7, -7]]
    assert batch.response_mask.tolist() == [[True, True, True], [True, False, False]]
    assert batch.token_rewards.tolist() == [[0.0, 0.0, 2.0], [2.0, 0.0, 0.0]]
    torch.testing.assert_close(batch.behaviour_log_probs, torch.tensor([[-0.1, -0.2, -0.3], [-0.1, 0.0, 0.0]]))
    assert batch.policy_versions.tolist() == [4, 4]


def test_a_missing_reward_keeps_its_row_out_of_the_loss() -> None:
    batch = collate([rewarded("a"), trajectory("b")], 0)
    assert batch.sample_mask.tolist() == [True, False]
    assert batch.response_mask.tolist() == [[True] * 3, [True] * 3]
    assert batch.loss_mask.tolist() == [[True] * 3, [False] * 3]


def test_no_trajectories_are_refused() -> None:
    with pytest.raises(ValueError, match="no trajectories"):
        collate([], 0)


def batch_of(count: int) -> TrajectoryBatch:
    return collate([rewarded(str(i), i + 1) if i % 3 else trajectory(str(i), i + 1) for i in range(count)], 0)


def test_select_keeps_tensors_and_trajectories_aligned() -> None:
    batch = batch_of(5)
    selection = batch.select(torch.tensor([4, 0]))
    assert [kept.sample_id for kept in selection.trajectories] == ["4", "0"]
    for field in dataclasses.fields(TrajectoryBatch):
        tensor = getattr(batch, field.name)
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(getattr(selection, field.name), tensor[[4, 0]]), field.name


def test_a_mask_is_no_list_of_indices() -> None:
    with pytest.raises(ValueError, match="int64"):
        batch_of(3).select(torch.tensor([True, False, True]))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_minibatches_show_each_row_once(size: int) -> None:
    batch = batch_of(7)
    seen = []
    for indices, minibatch in batch.minibatches(size, torch.Generator().manual_seed(0)):
        assert [kept.sample_id for kept in minibatch.trajectories] == [str(index) for index in indices.tolist()]
        assert len(minibatch) <= size
        seen += indices.tolist()
    assert sorted(seen) == list(range(7))


def test_minibatch_order_is_decided_by_the_generator_alone() -> None:
    batch = batch_of(7)
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    first = [indices.tolist() for indices, _ in batch.minibatches(2, generator)]
    second = [indices.tolist() for indices, _ in batch.minibatches(2, generator)]
    generator.set_state(state)
    assert [indices.tolist() for indices, _ in batch.minibatches(2, generator)] == first
    assert first != second


def test_to_moves_every_tensor() -> None:
    moved = batch_of(2).to("meta")
    tensors = [getattr(moved, field.name) for field in dataclasses.fields(TrajectoryBatch)]
    assert {tensor.device.type for tensor in tensors if isinstance(tensor, torch.Tensor)} == {"meta"}


def test_facts_per_response_counts_what_is_not_absent_over_rewarded_responses() -> None:
    full = reward_trajectory(trajectory("b"), ((WRONG_FACT, TRUE_FACT, WRONG_FACT),), OPTIONS)
    assert facts_per_response([rewarded("a"), full, trajectory("c")], FACT_TYPES) == 2.5  # and one verdict is absent
    assert math.isnan(facts_per_response([trajectory("c")], FACT_TYPES))


def test_truncated_responses_can_be_kept_out_of_what_is_learnt() -> None:
    cut = dataclasses.replace(rewarded("b"), finish_reason="length")
    batch = collate([rewarded("a"), cut, trajectory("c")], 0).without_truncated()
    assert batch.sample_mask.tolist() == [True, False, False]
