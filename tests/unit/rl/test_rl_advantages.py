"""Masked statistics, whitening and GAE, against independent naive computations."""

import random
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fgaif_ray.rl.advantages import (
    generalised_advantage_estimation,
    masked_mean,
    masked_statistics,
    masked_variance,
    merge_statistics,
    whiten,
)

ROWS = st.lists(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=6), min_size=1, max_size=5)


def padded(rows: list[list[float]], extra: int = 0, filler: float = 0.0) -> tuple[Tensor, Tensor]:
    """Right-padded float64 values and mask, `extra` columns wider than the longest row."""
    width = max(map(len, rows)) + extra
    values = torch.tensor([row + [filler] * (width - len(row)) for row in rows], dtype=torch.float64)
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return values, mask


@settings(deadline=None)
@given(ROWS)
def test_masked_mean_and_variance_equal_those_of_the_flat_list(rows: list[list[float]]) -> None:
    values, mask = padded(rows, extra=2, filler=1e6)
    flat = [number for row in rows for number in row]
    assert masked_mean(values, mask).item() == pytest.approx(statistics.fmean(flat), abs=1e-9)
    assert masked_variance(values, mask).item() == pytest.approx(statistics.pvariance(flat), abs=1e-9)


def test_masked_mean_by_a_common_denominator_adds_up_over_parts() -> None:
    values = torch.tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    parts = [masked_mean(values[row : row + 1], mask[row : row + 1], denominator=3) for row in range(2)]
    assert sum(parts).item() == pytest.approx(masked_mean(values, mask).item())  # type: ignore[union-attr]


def test_the_mean_of_nothing_is_a_zero_with_a_graph() -> None:
    values = torch.tensor([[1.0]], requires_grad=True)
    mean = masked_mean(values, torch.tensor([[False]]))
    mean.backward()
    assert mean.item() == 0.0
    assert values.grad is not None
    assert values.grad.tolist() == [[0.0]]


def test_an_integer_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="bool"):
        masked_mean(torch.ones(1, 2), torch.ones(1, 2, dtype=torch.int64))


def test_mistake_6_whitening_divides_by_the_standard_deviation() -> None:
    values = torch.tensor([[2.0, 4.0, 10.0, 16.0]])
    whitened = whiten(values, torch.ones_like(values, dtype=torch.bool))
    torch.testing.assert_close(whitened, (values - 8.0) / 30.0**0.5)


@settings(deadline=None)
@given(ROWS, st.integers(1, 9), st.sampled_from([1e6, float("nan"), float("inf")]))
def test_mistake_6_whitening_does_not_see_padding(rows: list[list[float]], extra: int, filler: float) -> None:
    values, mask = padded(rows)
    wider_values, wider_mask = padded(rows, extra, filler)
    whitened = whiten(values.float(), mask)
    wider = whiten(wider_values.float(), wider_mask)
    assert torch.equal(wider[:, : whitened.shape[1]], whitened)
    assert torch.count_nonzero(wider[~wider_mask]) == 0


@settings(deadline=None)
@given(ROWS.filter(lambda rows: statistics.pstdev([number for row in rows for number in row]) > 1e-2))
def test_whitened_values_have_unit_spread_and_no_mean(rows: list[list[float]]) -> None:
    values, mask = padded(rows)
    whitened = masked_statistics(whiten(values, mask), mask)
    assert whitened.mean == pytest.approx(0.0, abs=1e-6)
    assert whitened.variance == pytest.approx(1.0, abs=1e-3)


def test_constant_values_whiten_to_zero() -> None:
    values = torch.full((2, 3), 7.0)
    assert torch.count_nonzero(whiten(values, torch.ones_like(values, dtype=torch.bool))) == 0


@settings(deadline=None)
@given(ROWS, ROWS)
def test_workers_that_merge_their_statistics_whiten_like_one(left: list[list[float]], right: list[list[float]]) -> None:
    whole = masked_statistics(*padded(left + right))
    merged = merge_statistics([masked_statistics(*padded(left)), masked_statistics(*padded(right))])
    assert merged.count == whole.count
    assert merged.mean == pytest.approx(whole.mean, abs=1e-9)
    assert merged.variance == pytest.approx(whole.variance, abs=1e-9)


def naive_advantage(rewards: list[float], values: list[float], gamma: float, lambda_: float, step: int) -> float:
    """A_t as the explicit sum of discounted one-step errors."""
    following = [*values[1:], 0.0]
    errors = [rewards[i] + gamma * following[i] - values[i] for i in range(len(rewards))]
    return sum((gamma * lambda_) ** (i - step) * errors[i] for i in range(step, len(errors)))


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 10**6),
)
def test_advantages_equal_the_explicit_sum(lengths: list[int], gamma: float, lambda_: float, seed: int) -> None:
    draw = random.Random(seed)
    reward_rows = [[draw.gauss(0, 1) for _ in range(length)] for length in lengths]
    value_rows = [[draw.gauss(0, 1) for _ in range(length)] for length in lengths]
    rewards, mask = padded(reward_rows, extra=2, filler=float("nan"))
    values, _ = padded(value_rows, extra=2, filler=99.0)
    advantages, returns = generalised_advantage_estimation(rewards, values, mask, gamma, lambda_)
    for row, length in enumerate(lengths):
        expected = [naive_advantage(reward_rows[row], value_rows[row], gamma, lambda_, i) for i in range(length)]
        assert advantages[row, :length].tolist() == pytest.approx(expected, abs=1e-9)
        assert returns[row, :length].tolist() == pytest.approx(
            [a + v for a, v in zip(expected, value_rows[row], strict=True)], abs=1e-9
        )
        assert torch.count_nonzero(advantages[row, length:]) == torch.count_nonzero(returns[row, length:]) == 0


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([[0.0, 1.0, -1.0]])
    values = torch.tensor([[0.5, 0.25, 0.5]])
    advantages, returns = generalised_advantage_estimation(
        rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=0.5, lambda_=0.5
    )
    # errors: 0 + .125 - .5 = -.375; 1 + .25 - .25 = 1; -1 - .5 = -1.5; each A_t = error_t + .25 * A_{t+1}
    torch.testing.assert_close(advantages, torch.tensor([[-0.21875, 0.625, -1.5]]))
    torch.testing.assert_close(returns, torch.tensor([[0.28125, 0.875, -1.0]]))


def test_gamma_and_lambda_of_one_give_the_reward_to_go() -> None:
    rewards = torch.tensor([[1.0, 0.0, 2.0, -4.0]])
    values = torch.tensor([[0.3, -0.2, 0.9, 0.1]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    _, returns = generalised_advantage_estimation(rewards, values, mask, gamma=1.0, lambda_=1.0)
    torch.testing.assert_close(returns, torch.tensor([[-1.0, -2.0, -2.0, -4.0]]))


def test_mistake_8_returns_are_in_the_units_of_the_rewards_whether_or_not_advantages_are_whitened() -> None:
    rewards, values = torch.tensor([[0.0, 1.0, 1.0]]), torch.zeros(1, 3)
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = generalised_advantage_estimation(rewards, values, mask, gamma=1.0, lambda_=1.0)
    before = returns.clone()
    whiten(advantages, mask)
    assert returns.tolist() == before.tolist() == advantages.tolist() == [[2.0, 2.0, 1.0]]


def test_a_left_padded_mask_is_refused() -> None:
    mask = torch.tensor([[False, True, True]])
    with pytest.raises(ValueError, match="right-padded"):
        generalised_advantage_estimation(torch.zeros(1, 3), torch.zeros(1, 3), mask, 1.0, 1.0)


def test_a_sample_that_is_masked_as_a_whole_has_no_advantage() -> None:
    mask = torch.tensor([[False, False], [True, True]])
    advantages, _ = generalised_advantage_estimation(torch.ones(2, 2), torch.ones(2, 2), mask, 1.0, 0.95)
    assert advantages[0].tolist() == [0.0, 0.0]
