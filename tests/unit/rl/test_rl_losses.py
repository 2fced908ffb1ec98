"""PPO losses against hand-computed values, and the direction of their gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fgaif_ray.rl.advantages import masked_statistics
from fgaif_ray.rl.kl import KLEstimator
from fgaif_ray.rl.losses import (
    combine_statistics,
    entropy_loss,
    explained_variance,
    kl_loss,
    policy_loss,
    value_loss,
)
from fgaif_ray.vlm.entropy import entropy_from_logits

NAN = float("nan")


def logs(*ratios: float) -> Tensor:
    return torch.tensor([ratios]).log()


def every(tensor: Tensor) -> Tensor:
    return torch.ones_like(tensor, dtype=torch.bool)


def test_policy_loss_by_hand() -> None:
    ratios, advantages = logs(1.5, 0.5, 1.1, 1.5, 0.5), torch.tensor([[1.0, 1.0, 2.0, -1.0, -1.0]])
    loss, statistics = policy_loss(ratios, torch.zeros(1, 5), advantages, every(ratios), clip_range=0.2)
    # surrogates: min(1.5, 1.2), min(.5, .8), 2 * 1.1, min(-1.5, -1.2), min(-.5, -.8)
    assert loss.item() == pytest.approx(-(1.2 + 0.5 + 2.2 - 1.5 - 0.8) / 5)
    assert statistics.loss == pytest.approx(loss.item())
    assert statistics.clip_share == pytest.approx(2 / 5)
    assert statistics.ratio_mean == pytest.approx(5.1 / 5)
    assert statistics.ratio_max == pytest.approx(1.5)
    expected_kl = sum(r - 1 - math.log(r) for r in (1.5, 0.5, 1.1, 1.5, 0.5)) / 5
    assert statistics.approximate_kl == pytest.approx(expected_kl, rel=1e-5)
    assert statistics.tokens == 5


def test_descending_the_policy_loss_raises_what_had_an_advantage() -> None:
    log_probs = torch.zeros(1, 3, requires_grad=True)
    policy_loss(log_probs, torch.zeros(1, 3), torch.tensor([[2.0, -1.0, 0.0]]), every(log_probs), clip_range=0.2)[
        0
    ].backward()
    assert log_probs.grad is not None
    torch.testing.assert_close(-log_probs.grad, torch.tensor([[2.0, -1.0, 0.0]]) / 3)


def test_the_clip_cuts_the_gradient_only_in_the_direction_of_the_advantage() -> None:
    log_probs = logs(1.5, 0.5, 1.5, 0.5).requires_grad_()
    advantages = torch.tensor([[1.0, -1.0, -1.0, 1.0]])
    policy_loss(log_probs, torch.zeros(1, 4), advantages, every(log_probs), clip_range=0.2)[0].backward()
    assert log_probs.grad is not None
    assert (log_probs.grad != 0).tolist() == [[False, False, True, True]]


def test_importance_weights_are_truncated_and_carry_no_gradient() -> None:
    old, behaviour = logs(0.5, 0.5, 0.5), logs(0.5, 0.1, 1.0)  # raw weights 1, 5, 0.5
    log_probs = old.clone().requires_grad_()
    loss, statistics = policy_loss(
        log_probs,
        old,
        torch.ones(1, 3),
        every(old),
        clip_range=0.2,
        behaviour_log_probs=behaviour,
        importance_cap=2.0,
    )
    loss.backward()
    assert loss.item() == pytest.approx(-(1 + 2 + 0.5) / 3)
    assert log_probs.grad is not None
    torch.testing.assert_close(log_probs.grad, -torch.tensor([[1.0, 2.0, 0.5]]) / 3)
    assert statistics.importance_truncated_share == pytest.approx(1 / 3)
    assert statistics.importance_weight_max == pytest.approx(5.0)
    assert statistics.importance_weight_mean == pytest.approx(3.5 / 3)


def test_the_importance_weight_is_that_of_the_policy_before_the_update() -> None:
    """After the first optimiser step new and old differ; how far the update has come is the ratio's to say."""
    log_probs, old, behaviour = logs(0.6).requires_grad_(), logs(0.5), logs(0.25)  # ratio 1.2, weight 2
    loss, statistics = policy_loss(
        log_probs, old, torch.ones(1, 1), every(old),
        clip_range=0.5, behaviour_log_probs=behaviour, importance_cap=9.0,
    )  # fmt: skip
    loss.backward()
    assert loss.item() == pytest.approx(-2.0 * 1.2)
    assert log_probs.grad is not None
    assert log_probs.grad.item() == pytest.approx(-2.0 * 1.2)
    assert statistics.importance_weight_mean == pytest.approx(2.0)


def test_mistake_6_losses_and_gradients_do_not_see_padding() -> None:
    mask = torch.tensor([[True, True, False, False]])
    log_probs = torch.tensor([[-1.0, -2.0, 500.0, NAN]], requires_grad=True)
    old = torch.tensor([[-1.1, -1.9, -500.0, NAN]])
    advantages = torch.tensor([[1.0, -1.0, -9.0, NAN]])
    loss, statistics = policy_loss(log_probs, old, advantages, mask, clip_range=0.2, behaviour_log_probs=old)
    short, short_statistics = policy_loss(
        log_probs[:, :2],
        old[:, :2],
        advantages[:, :2],
        mask[:, :2],
        clip_range=0.2,
        behaviour_log_probs=old[:, :2],
    )
    loss.backward()
    assert log_probs.grad is not None
    assert torch.equal(loss, short)
    assert statistics == short_statistics
    assert log_probs.grad[0, 2:].tolist() == [0.0, 0.0]


def test_value_loss_by_hand() -> None:
    values, old = torch.tensor([[1.0, 0.1, 3.0]]), torch.tensor([[0.0, 0.0, 3.0]])
    returns = torch.tensor([[2.0, 1.0, 9.0]])
    mask = torch.tensor([[True, True, False]])
    loss, statistics = value_loss(values, old, returns, mask, clip_range=0.2)
    # first: clipped to .2, (.2 - 2)^2 = 3.24 beats 1; second: inside, (.1 - 1)^2 = .81
    assert loss.item() == pytest.approx(0.5 * (3.24 + 0.81) / 2)
    assert statistics.clip_share == 0.5
    assert statistics.value_mean == pytest.approx(0.55)
    assert statistics.return_mean == pytest.approx(1.5)


def test_descending_the_value_loss_moves_values_to_the_returns() -> None:
    values = torch.tensor([[0.1, -0.1]], requires_grad=True)
    value_loss(values, torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]), every(values), clip_range=0.2)[0].backward()
    assert values.grad is not None
    torch.testing.assert_close(-values.grad, torch.tensor([[0.45, -0.45]]))


def test_a_value_far_from_its_old_one_and_past_the_clip_gets_no_gradient() -> None:
    values = torch.tensor([[0.9]], requires_grad=True)
    value_loss(values, torch.zeros(1, 1), torch.ones(1, 1), every(values), clip_range=0.2)[0].backward()
    assert values.grad is not None
    assert values.grad.item() == 0.0


def test_value_loss_without_clip_is_half_the_squared_error() -> None:
    values = torch.tensor([[0.9, 0.0]])
    loss, statistics = value_loss(values, torch.zeros(1, 2), torch.ones(1, 2), every(values), clip_range=None)
    assert loss.item() == pytest.approx(0.5 * (0.01 + 1.0) / 2)
    assert statistics.clip_share == 0.0


def test_entropy_equals_that_of_the_categorical_for_every_chunking() -> None:
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    exact = torch.distributions.Categorical(logits=logits).entropy()
    for chunk_tokens in (1, 3, 100):
        torch.testing.assert_close(entropy_from_logits(logits, chunk_tokens), exact)
        torch.testing.assert_close(entropy_from_logits(logits[:, 1:], chunk_tokens), exact[:, 1:])


def test_the_chunked_entropy_has_the_gradient_of_the_whole() -> None:
    logits = torch.randn(3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain, chunked = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    torch.distributions.Categorical(logits=plain).entropy().sum().backward()
    entropy_from_logits(chunked, chunk_tokens=5).sum().backward()
    torch.testing.assert_close(chunked.grad, plain.grad)


def test_banned_tokens_leave_entropy_and_gradient_finite() -> None:
    logits = torch.tensor([[0.0, 0.0, float("-inf")]], requires_grad=True)
    entropy = entropy_from_logits(logits)
    entropy.sum().backward()
    assert entropy.item() == pytest.approx(math.log(2))
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


def test_descending_the_entropy_loss_spreads_the_distribution() -> None:
    logits = torch.tensor([[[2.0, 0.0]]], requires_grad=True)
    loss, statistics = entropy_loss(entropy_from_logits(logits), torch.ones(1, 1, dtype=torch.bool))
    loss.backward()
    assert statistics.entropy == pytest.approx(-loss.item())
    assert logits.grad is not None
    assert logits.grad[0, 0, 0] > 0 > logits.grad[0, 0, 1]


@settings(deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(-2, 2)] * 3), min_size=2, max_size=6),
    st.sampled_from(["k1", "k2", "k3"]),
)
def test_the_gradient_of_the_kl_loss_is_that_of_the_divergence(
    logits: list[tuple[float, float, float]], estimator: KLEstimator
) -> None:
    """Exactly, by enumeration: over the samples of another policy, and whatever the estimator."""
    start, reference, sampler = (column.log_softmax(0) for column in torch.tensor(logits, dtype=torch.float64).T)
    exact_input, input_ = start.clone().requires_grad_(), start.clone().requires_grad_()
    policy = exact_input.log_softmax(0)
    divergence = (policy.exp() * (policy - reference)).sum()
    divergence.backward()
    policy = input_.log_softmax(0)
    value = 0.0
    for token in range(len(logits)):
        one = slice(token, token + 1)
        chance = sampler[token].exp()
        loss, _ = kl_loss(
            policy[one], reference[one], sampler[one], every(policy[one]),
            estimator=estimator, importance_cap=1e9, denominator=1 / chance,
        )  # fmt: skip
        loss.backward(retain_graph=True)
        value += loss.item()
    torch.testing.assert_close(input_.grad, exact_input.grad, rtol=1e-6, atol=1e-9)
    if estimator != "k2":  # which is biased as a value
        assert value == pytest.approx(divergence.item(), abs=1e-9)


def test_the_weights_of_the_kl_loss_are_truncated() -> None:
    log_probs = logs(0.5, 0.5).requires_grad_()
    reference, behaviour = logs(0.25, 0.25), logs(0.1, 0.5)  # raw weights 5 and 1
    loss, statistics = kl_loss(log_probs, reference, behaviour, every(reference), importance_cap=2.0)
    loss.backward()
    assert loss.item() == pytest.approx((2 + 1) * math.log(2) / 2)
    assert statistics.kl == pytest.approx(loss.item())
    assert log_probs.grad is not None
    torch.testing.assert_close(log_probs.grad, torch.tensor([[2.0, 1.0]]) * math.log(2) / 2)


def test_the_kl_loss_does_not_see_padding() -> None:
    mask = torch.tensor([[True, False]])
    log_probs = torch.tensor([[-1.0, NAN]], requires_grad=True)
    loss, _ = kl_loss(log_probs, torch.tensor([[-2.0, NAN]]), torch.tensor([[-1.0, NAN]]), mask)
    loss.backward()
    assert loss.item() == pytest.approx(1.0)
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [[1.0, 0.0]]


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any), st.integers(0, 1000))
def test_micro_batches_add_up_to_the_whole(lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), 5)
    mask = torch.arange(5)[None] < torch.tensor(lengths)[:, None]  # [batch, response_tokens]
    new, old, advantages = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    whole, whole_statistics = policy_loss(new, old, advantages, mask, clip_range=0.2)
    parts = [
        policy_loss(
            new[row : row + 1],
            old[row : row + 1],
            advantages[row : row + 1],
            mask[row : row + 1],
            clip_range=0.2,
            denominator=sum(lengths),
        )
        for row in range(len(lengths))
    ]
    combined = combine_statistics([statistics for _, statistics in parts])
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole.item(), abs=1e-9)
    assert combined.tokens == whole_statistics.tokens
    assert combined.clip_share == pytest.approx(whole_statistics.clip_share)
    assert combined.ratio_max == pytest.approx(whole_statistics.ratio_max)
    assert combined.loss == pytest.approx(whole.item(), abs=1e-9)


def test_a_batch_without_real_tokens_gives_a_zero_gradient() -> None:
    log_probs = torch.zeros(1, 2, requires_grad=True)
    mask = torch.zeros(1, 2, dtype=torch.bool)
    loss, statistics = policy_loss(log_probs, torch.zeros(1, 2), torch.ones(1, 2), mask, clip_range=0.2)
    loss.backward()
    assert loss.item() == 0.0
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [[0.0, 0.0]]
    assert statistics.tokens == 0
    assert math.isnan(statistics.loss)


def test_explained_variance_is_one_zero_and_undefined() -> None:
    returns, mask = torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[True, True, False]])

    def explained(values: torch.Tensor, of: torch.Tensor) -> float:
        return explained_variance(masked_statistics(of - values, mask), masked_statistics(of, mask))

    assert explained(returns, returns) == 1.0
    assert explained(torch.zeros(1, 3), returns) == 0.0
    assert explained(-returns, returns) == -3.0
    assert math.isnan(explained(returns, torch.ones(1, 3)))


@pytest.mark.parametrize("keywords", [{"clip_range": 0.0}, {"clip_range": 0.2, "importance_cap": 0.0}])
def test_ranges_must_be_positive(keywords: dict[str, float]) -> None:
    zeros = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="must be positive"):
        policy_loss(zeros, zeros, zeros, every(zeros), **keywords)  # type: ignore[arg-type]
