"""KL estimators against the exact divergence, the sign of the penalty, and the controllers."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fgaif_ray.rl.kl import (
    AdaptiveKLController,
    FixedKLController,
    KLEstimator,
    kl_estimate,
    penalised_rewards,
)

LOGITS = st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=2, max_size=6)


def distributions(logits: list[tuple[float, float]]) -> tuple[Tensor, Tensor]:
    """Log-probs of a policy and a reference over a small vocabulary, in float64."""
    policy, reference = torch.tensor(logits, dtype=torch.float64).T
    return policy.log_softmax(0), reference.log_softmax(0)


def expectation(log_probs: Tensor, estimate: Tensor) -> Tensor:
    """Exact mean over the policy's samples, by enumeration."""
    return (log_probs.exp() * estimate).sum()


@settings(deadline=None)
@given(LOGITS)
def test_k1_and_k3_are_unbiased(logits: list[tuple[float, float]]) -> None:
    policy, reference = distributions(logits)
    exact = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=policy), torch.distributions.Categorical(logits=reference)
    )
    torch.testing.assert_close(expectation(policy, kl_estimate(policy, reference, "k1")), exact)
    torch.testing.assert_close(expectation(policy, kl_estimate(policy, reference, "k3")), exact)


@settings(deadline=None)
@given(LOGITS)
def test_k2_and_k3_are_never_negative(logits: list[tuple[float, float]]) -> None:
    policy, reference = distributions(logits)
    assert kl_estimate(policy, reference, "k2").min() >= 0
    assert kl_estimate(policy, reference, "k3").min() >= -1e-12


@settings(deadline=None)
@given(LOGITS)
def test_the_gradient_of_k2_is_the_gradient_of_the_divergence(logits: list[tuple[float, float]]) -> None:
    policy_logits, reference_logits = torch.tensor(logits, dtype=torch.float64).T
    reference = reference_logits.log_softmax(0)
    exact_input = policy_logits.clone().requires_grad_()
    policy = exact_input.log_softmax(0)
    (policy.exp() * (policy - reference)).sum().backward()
    sampled_input = policy_logits.clone().requires_grad_()
    policy = sampled_input.log_softmax(0)
    (policy.exp().detach() * kl_estimate(policy, reference, "k2")).sum().backward()
    torch.testing.assert_close(sampled_input.grad, exact_input.grad)


def test_k2_approaches_the_divergence_for_near_distributions() -> None:
    policy, reference = distributions([(0.30, 0.31), (-0.20, -0.22), (0.05, 0.05)])
    exact = expectation(policy, policy - reference)
    assert expectation(policy, kl_estimate(policy, reference, "k2")).item() == pytest.approx(exact.item(), rel=0.05)


def test_mistake_1_divergence_costs_reward() -> None:
    policy = torch.tensor([[-0.1, -0.1, -5.0]])  # the first token became likelier than the reference has it
    reference = torch.tensor([[-2.1, -0.1, -5.0]])
    mask = torch.tensor([[True, True, False]])
    rewards = penalised_rewards(torch.ones(1, 3), kl_estimate(policy, reference, "k1"), 0.5, mask)
    torch.testing.assert_close(rewards, torch.tensor([[0.0, 1.0, 0.0]]))


@settings(deadline=None)
@given(LOGITS, st.floats(0.01, 5.0), st.sampled_from(["k1", "k2", "k3"]))
def test_mistake_1_the_penalty_never_pays_on_average(
    logits: list[tuple[float, float]], beta: float, estimator: KLEstimator
) -> None:
    policy, reference = distributions(logits)
    mask = torch.ones_like(policy, dtype=torch.bool)
    kl = kl_estimate(policy, reference, estimator)
    assert expectation(policy, penalised_rewards(torch.zeros_like(policy), kl, beta, mask)) <= 1e-9


def test_padding_earns_nothing_even_where_its_kl_is_not_finite() -> None:
    kl = torch.tensor([[0.1, float("nan")]])
    rewards = penalised_rewards(torch.zeros(1, 2), kl, 1.0, torch.tensor([[True, False]]))
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, 0.0]]))


def test_a_negative_beta_is_refused() -> None:
    with pytest.raises(ValueError, match="pay for divergence"):
        penalised_rewards(torch.zeros(1, 1), torch.zeros(1, 1), -0.1, torch.ones(1, 1, dtype=torch.bool))


def test_the_fixed_controller_does_not_move() -> None:
    controller = FixedKLController(0.1)
    controller.update(100.0, 512)
    assert controller.beta == 0.1


def test_the_adaptive_controller_follows_ziegler() -> None:
    controller = AdaptiveKLController(beta=0.2, target=6.0, horizon=10_000)
    controller.update(6.6, 500)  # error 0.1, share of the horizon 0.05
    assert controller.beta == pytest.approx(0.2 * 1.005)
    controller.update(600.0, 500)  # error cut at 0.2
    assert controller.beta == pytest.approx(0.2 * 1.005 * 1.01)


@settings(deadline=None)
@given(st.floats(-10, 1000), st.integers(1, 10**6))
def test_the_adaptive_weight_stays_positive_and_moves_towards_the_target(observed: float, samples: int) -> None:
    controller = AdaptiveKLController(beta=0.2, target=6.0, horizon=1000)
    controller.update(observed, samples)
    assert controller.beta > 0
    assert (controller.beta >= 0.2) == (observed >= 6.0) or controller.beta == pytest.approx(0.2)


def test_the_adaptive_controller_refuses_a_kl_that_is_not_finite() -> None:
    with pytest.raises(ValueError, match="nan"):
        AdaptiveKLController(0.2, 6.0, 1000).update(float("nan"), 8)


def test_a_controller_resumes_from_json_exactly() -> None:
    controller = AdaptiveKLController(0.1, 0.05, 777)
    for observed in (0.07, 0.2, 0.01):
        controller.update(observed, 10)
    resumed = AdaptiveKLController(0.1, 0.05, 777)
    resumed.load_state_dict(json.loads(json.dumps(controller.state_dict())))
    assert resumed.beta == controller.beta


@pytest.mark.parametrize("state", [{}, {"beta": 0.1, "target": 1.0}, {"beta": -1.0}])
def test_a_controller_refuses_a_foreign_state(state: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"KL controller|at least 0"):
        FixedKLController(0.1).load_state_dict(state)
