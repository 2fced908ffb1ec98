"""Every option of the PPO update changes what it says it changes: a loss, a gradient or a step."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
import torch
from support.ppo_steps import IMAGE, PPO, PROMPT, experience, group, new_model, toy_responses, trajectory
from torch import Tensor

from fgaif_ray.config import KLConfig, PPOConfig
from fgaif_ray.rl.kl import KLEstimator, kl_estimate
from fgaif_ray.rl.policy import PolicyModel
from fgaif_ray.rl.step import Estimates, Experience, KLTerm, PPOUpdater, estimate, prepare
from fgaif_ray.rl.trajectories import collate

ONE_STEP = PPO.model_copy(update={"epochs": 1, "micro_batch_size": 8, "max_grad_norm": 1e9})
POLICY_NORM, CRITIC_NORM = "update/policy_gradient_norm", "update/critic_gradient_norm"


@pytest.fixture(scope="module")
def model() -> PolicyModel:
    """A policy that differs from the reference, and a critic that expects something."""
    model = new_model()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in (model.policy_parameters() | model.critic_parameters()).values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def measured(model: PolicyModel) -> Experience:
    """Eight responses; `old_log_probs` and `old_values` are what the model says of them now."""
    return experience(model, toy_responses())


def placed(
    measured: Experience, *, ratio: float = 1.0, weight: float = 1.0, advantage: float = 1.0, kl: KLTerm | None = None
) -> Experience:
    """The same responses where every token has this probability ratio, importance weight and advantage."""
    old = measured.old_log_probs - math.log(ratio)
    return replace(
        measured,
        old_log_probs=old,
        behaviour_log_probs=old - math.log(weight),
        advantages=torch.full_like(old, advantage),
        kl_term=kl,
    )


@dataclass(frozen=True)
class Learnt:
    """What one call of `PPOUpdater.update` did."""

    metrics: dict[str, float]
    optimiser: dict[str, Tensor]
    moved: dict[str, Tensor]
    """Parameter name -> its change."""


@pytest.fixture
def learn(model: PolicyModel) -> Callable[..., Learnt]:
    """Updates the model with the given options, and puts it back."""
    before = model.trained_state()

    def run(data: Experience, minibatches: int = 1, **options: Any) -> Learnt:
        updater = PPOUpdater(model, ONE_STEP.model_copy(update=options), group())
        metrics = updater.update(data, 0, torch.Generator().manual_seed(0), minibatches)
        after = model.trained_state()
        model.load_trained_state(before)
        return Learnt(metrics, updater.state_dict(), {name: after[name] - before[name] for name in before})

    return run


# The policy's loss


@pytest.mark.parametrize(
    ("clip", "ratio", "advantage", "loss", "learns"),
    [
        (0.2, 1.3, 1.0, -1.2, False),
        (0.4, 1.3, 1.0, -1.3, True),
        (0.2, 0.7, -1.0, 0.8, False),
        (0.4, 0.7, -1.0, 0.7, True),
    ],
)
def test_clip_bounds_how_far_the_ratio_is_learnt_from(
    learn: Callable[..., Learnt],
    measured: Experience,
    clip: float,
    ratio: float,
    advantage: float,
    loss: float,
    learns: bool,
) -> None:
    metrics = learn(placed(measured, ratio=ratio, advantage=advantage), clip=clip, value_clip=0.3).metrics
    assert metrics["policy/loss"] == pytest.approx(loss, rel=1e-4)
    assert (metrics[POLICY_NORM] > 1e-3) == learns
    assert metrics["policy/clip_share"] == (0.0 if learns else 1.0)


@pytest.mark.parametrize(("ratio", "learns"), [(1.3, True), (0.7, False)])
def test_clip_high_moves_the_upper_bound_alone(
    learn: Callable[..., Learnt], measured: Experience, ratio: float, learns: bool
) -> None:
    advantage = math.copysign(1.0, ratio - 1)
    metrics = learn(placed(measured, ratio=ratio, advantage=advantage), clip=0.2, clip_high=0.4).metrics
    assert (metrics[POLICY_NORM] > 1e-3) == learns


def test_ratios_of_whole_responses_are_the_mean_of_their_tokens(
    learn: Callable[..., Learnt], measured: Experience
) -> None:
    """One token of each response has moved far: by itself it is cut off, in its response's mean it is not."""
    data = placed(measured)
    old = data.old_log_probs.clone()
    old[:, 0] -= math.log(1.3)
    data = replace(data, old_log_probs=old, behaviour_log_probs=old)
    by_token, by_response = (learn(data, clip=0.2, ratio=level).metrics for level in ("token", "sequence"))
    lengths = data.mask.sum(1)
    assert by_token["policy/clip_share"] == pytest.approx(len(lengths) / float(lengths.sum()))
    means = torch.exp(math.log(1.3) / lengths.double())  # [responses]
    assert by_response["policy/ratio_mean"] == pytest.approx(float((means * lengths).sum() / lengths.sum()), rel=1e-4)
    assert by_response["policy/clip_share"] == pytest.approx(float(lengths[means > 1.2].sum() / lengths.sum()))


@pytest.mark.parametrize("level", ["sequence", "constant"])
def test_the_loss_is_divided_by_what_the_option_says(
    model: PolicyModel, measured: Experience, level: Literal["sequence", "constant"]
) -> None:
    """One response's tokens are worth 1, all others nothing."""
    lengths = measured.mask.sum(1)
    row = int(lengths.argmax())
    advantages = torch.zeros_like(measured.advantages)
    advantages[row] = 1.0
    data, before = replace(placed(measured), advantages=advantages), model.trained_state()
    config = ONE_STEP.model_copy(update={"loss_normalisation": level})
    metrics = PPOUpdater(model, config, group(), max_tokens=20).update(data, 0, torch.Generator().manual_seed(0), 1)
    model.load_trained_state(before)
    share = {"sequence": 1 / len(lengths), "constant": float(lengths[row]) / (20 * len(lengths))}[level]
    assert metrics["policy/loss"] == pytest.approx(-share, rel=1e-4)


def test_a_constant_denominator_needs_the_longest_response(model: PolicyModel) -> None:
    with pytest.raises(ValueError, match="needs the most tokens"):
        PPOUpdater(model, ONE_STEP.model_copy(update={"loss_normalisation": "constant"}), group())


def test_a_policy_that_has_moved_too_far_ends_the_epochs(learn: Callable[..., Learnt], measured: Experience) -> None:
    moved = placed(measured, ratio=1.5)  # k3 of 1.5: .5 - ln 1.5 = .095
    stopped, through = (learn(moved, epochs=2, target_kl=limit).metrics for limit in (0.09, 10.0))
    assert (stopped["update/stopped_early"], through["update/stopped_early"]) == (1.0, 0.0)
    assert all(not bool(change.any()) for change in learn(moved, epochs=2, target_kl=0.09).moved.values())


def test_a_critic_learns_alone_in_its_first_steps(learn: Callable[..., Learnt], measured: Experience) -> None:
    moved = learn(placed(measured), critic_warmup_steps=1).moved
    trained = {name for name, change in moved.items() if bool(change.any())}
    assert trained and not any(".policy." in name for name in trained)
    assert any(".policy." in name and bool(change.any()) for name, change in learn(placed(measured)).moved.items())


@pytest.mark.parametrize(("cap", "weight"), [(2.0, 2.0), (3.0, 3.0), (9.0, 5.0)])
def test_importance_cap_bounds_the_weight_of_the_policy_gradient(
    learn: Callable[..., Learnt], measured: Experience, cap: float, weight: float
) -> None:
    plain = learn(placed(measured)).metrics
    metrics = learn(placed(measured, weight=5.0), importance_cap=cap).metrics
    assert metrics["policy/loss"] == pytest.approx(-weight, rel=1e-4)
    assert metrics[POLICY_NORM] == pytest.approx(weight * plain[POLICY_NORM], rel=1e-3)
    assert metrics[CRITIC_NORM] == pytest.approx(plain[CRITIC_NORM], rel=1e-4)


@pytest.mark.parametrize("coefficient", [0.5, 2.0])
def test_the_entropy_bonus_is_added_by_its_coefficient(
    learn: Callable[..., Learnt], measured: Experience, coefficient: float
) -> None:
    still = placed(measured, advantage=0.0)
    without, one = learn(still).metrics, learn(still, entropy_coefficient=1.0).metrics
    metrics = learn(still, entropy_coefficient=coefficient).metrics
    assert without[POLICY_NORM] == pytest.approx(0.0, abs=1e-9)
    assert metrics[POLICY_NORM] == pytest.approx(coefficient * one[POLICY_NORM], rel=1e-3)


def test_the_entropy_bonus_raises_the_entropy(model: PolicyModel, measured: Experience) -> None:
    before = model.trained_state()
    config = ONE_STEP.model_copy(update={"entropy_coefficient": 0.1, "learning_rate": 1e-4})
    still = placed(measured, advantage=0.0)
    PPOUpdater(model, config, group()).update(still, 0, torch.Generator().manual_seed(0), 1)
    entropies = estimate(model, measured.rows, 8).entropies[measured.mask]
    model.load_trained_state(before)
    assert float(entropies.mean()) > measured.metrics["policy/entropy"] + 1e-4


# The KL to the reference


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_estimator_decides_the_kl_of_the_loss(
    model: PolicyModel, learn: Callable[..., Learnt], measured: Experience, estimator: KLEstimator
) -> None:
    reference = estimate(model, measured.rows, 8).reference_log_probs
    term = KLTerm(reference_log_probs=reference, coefficient=1.0, estimator=estimator)
    metrics = learn(placed(measured, kl=term)).metrics
    expected = kl_estimate(measured.old_log_probs, reference, estimator)[measured.mask].mean()
    assert metrics["kl/loss"] == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize(
    ("coefficient", "cap", "times"), [(1.0, 1.0, 1.0), (3.0, 1.0, 3.0), (1.0, 2.0, 2.0), (1.0, 9.0, 5.0)]
)
def test_coefficient_and_importance_cap_scale_the_kl_of_the_loss(
    model: PolicyModel,
    learn: Callable[..., Learnt],
    measured: Experience,
    coefficient: float,
    cap: float,
    times: float,
) -> None:
    reference = estimate(model, measured.rows, 8).reference_log_probs
    one, term = (KLTerm(reference_log_probs=reference, coefficient=c, estimator="k1") for c in (1.0, coefficient))
    plain = learn(placed(measured, advantage=0.0, kl=one)).metrics
    metrics = learn(placed(measured, advantage=0.0, weight=5.0, kl=term), importance_cap=cap).metrics
    assert metrics[POLICY_NORM] == pytest.approx(times * plain[POLICY_NORM], rel=1e-3)


def prepared(
    model: PolicyModel,
    rewards: tuple[float, ...] = (1.0, 0.0, 2.0),
    values: tuple[float, ...] = (0.5, -1.0, 3.0),
    drift: tuple[float, ...] = (0.0, 0.0, 0.0),
    kl: KLConfig | None = None,
    beta: float = 0.1,
    **options: Any,
) -> Experience:
    """One response of three tokens; `drift` is log policy - log reference."""
    ids = [70, 80, 90]
    policy = torch.tensor([[-1.0, -2.0, -0.5]])
    estimates = Estimates(
        log_probs=policy,
        entropies=torch.ones(1, 3),
        reference_log_probs=policy - torch.tensor([drift]),
        values=torch.tensor([values]),
    )
    batch = collate([trajectory(0, ids, policy[0].tolist(), token_rewards=rewards)], model.backbone.eos_token_id)
    config = PPOConfig(**({"gamma": 1.0, "lambda_": 1.0, "whiten_advantages": False} | options))
    return prepare(model.encode([PROMPT], [IMAGE], [ids]), batch, estimates, config, kl or KLConfig(), beta, group())


@pytest.mark.parametrize(
    ("estimator", "costs"),
    [("k1", [0.5, -1.0, 0.0]), ("k2", [0.125, 0.5, 0.0]), ("k3", [math.exp(-0.5) - 0.5, math.e - 2.0, 0.0])],
)
@pytest.mark.parametrize("beta", [0.1, 0.4])
def test_estimator_and_weight_decide_what_the_kl_costs(
    model: PolicyModel, estimator: KLEstimator, costs: list[float], beta: float
) -> None:
    data = prepared(model, (0.0,) * 3, (0.0,) * 3, drift=(0.5, -1.0, 0.0), kl=KLConfig(estimator=estimator), beta=beta)
    expected = [[-beta * sum(costs), -beta * sum(costs[1:]), 0.0]]
    torch.testing.assert_close(data.returns, torch.tensor(expected), rtol=1e-4, atol=1e-6)
    assert data.metrics["reward/penalised"] == pytest.approx(expected[0][0], rel=1e-4)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_a_kl_that_is_left_to_the_loss_keeps_its_estimator_and_weight(
    model: PolicyModel, estimator: KLEstimator
) -> None:
    """The weight is the controller's present one, not the configured one."""
    kl = KLConfig(estimator=estimator, placement="loss", coefficient=0.1)
    data = prepared(model, (0.0,) * 3, (0.0,) * 3, drift=(0.5, -1.0, 0.0), kl=kl, beta=0.4)
    assert data.kl_term is not None
    assert (data.kl_term.estimator, data.kl_term.coefficient) == (estimator, 0.4)
    assert torch.equal(data.returns, torch.zeros(1, 3))


# Advantages and returns


@pytest.mark.parametrize(
    ("gamma", "lambda_", "advantages"),
    [
        (1.0, 1.0, [2.5, 3.0, -1.0]),
        (0.5, 1.0, [1.0, 2.0, -1.0]),
        (1.0, 0.5, [1.25, 3.5, -1.0]),
        (0.5, 0.25, [0.296875, 2.375, -1.0]),
    ],
)
def test_gamma_and_lambda_decide_the_advantages(
    model: PolicyModel, gamma: float, lambda_: float, advantages: list[float]
) -> None:
    data = prepared(model, gamma=gamma, lambda_=lambda_)
    torch.testing.assert_close(data.advantages, torch.tensor([advantages]))
    torch.testing.assert_close(data.returns, torch.tensor([advantages]) + torch.tensor([[0.5, -1.0, 3.0]]))


def test_whitening_scales_the_advantages_and_leaves_the_returns(model: PolicyModel) -> None:
    raw, whitened = prepared(model), prepared(model, whiten_advantages=True)
    torch.testing.assert_close(raw.advantages, torch.tensor([[2.5, 3.0, -1.0]]))
    torch.testing.assert_close(
        whitened.advantages, (raw.advantages - 1.5) / raw.advantages.std(correction=0), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(whitened.returns, raw.returns)


# The critic's loss


@pytest.mark.parametrize(
    ("value_clip", "loss", "learns"), [(0.2, 0.5 * 1.8**2, False), (0.5, 0.5 * 1.5**2, False), (3.0, 0.5, True)]
)
def test_value_clip_bounds_how_far_a_value_is_learnt_from(
    learn: Callable[..., Learnt], measured: Experience, value_clip: float, loss: float, learns: bool
) -> None:
    """Each value is one above its old one and one below its return."""
    data = replace(measured, old_values=measured.old_values - 1, returns=measured.old_values + 1)
    metrics = learn(data, value_clip=value_clip, clip=0.4).metrics
    assert metrics["critic/loss"] == pytest.approx(loss, rel=1e-4)
    assert (metrics[CRITIC_NORM] > 1e-3) == learns


def test_without_a_value_clip_the_critic_learns_from_the_plain_error(
    learn: Callable[..., Learnt], measured: Experience
) -> None:
    data = replace(measured, old_values=measured.old_values - 1, returns=measured.old_values + 1)
    plain, wide = learn(data, value_clip=None).metrics, learn(data, value_clip=3.0).metrics
    assert plain["critic/loss"] == pytest.approx(0.5, rel=1e-4)
    assert plain[CRITIC_NORM] == pytest.approx(wide[CRITIC_NORM], rel=1e-4)


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 2.0])
def test_value_coefficient_scales_the_critics_gradient_alone(
    learn: Callable[..., Learnt], measured: Experience, coefficient: float
) -> None:
    one, metrics = (learn(measured, value_coefficient=value).metrics for value in (1.0, coefficient))
    assert metrics[CRITIC_NORM] == pytest.approx(coefficient * one[CRITIC_NORM], rel=1e-3)
    assert metrics[POLICY_NORM] == pytest.approx(one[POLICY_NORM], rel=1e-4)


# The step


def first_moment(learnt: Learnt, critic: bool) -> float:
    """Norm of Adam's running mean of gradients, which is a tenth of the first one."""
    own = [
        value for name, value in learnt.optimiser.items()
        if name.startswith("exp_avg/") and (".critic." in name or "value_head" in name) == critic
    ]  # fmt: skip
    return float(torch.cat([value.flatten() for value in own]).norm())


@pytest.mark.parametrize("share", [0.25, 0.5, 2.0])
def test_max_grad_norm_bounds_the_gradients_of_policy_and_critic_apart(
    learn: Callable[..., Learnt], measured: Experience, share: float
) -> None:
    free = learn(measured).metrics
    bound = share * min(free[POLICY_NORM], free[CRITIC_NORM])
    learnt = learn(measured, max_grad_norm=bound)
    for critic, name in ((False, POLICY_NORM), (True, CRITIC_NORM)):
        assert learnt.metrics[name] == pytest.approx(free[name], rel=1e-4)  # reported as it was
        assert first_moment(learnt, critic) == pytest.approx(0.1 * min(bound, free[name]), rel=1e-3)


@pytest.mark.parametrize(("policy", "critic"), [(1e-3, 1e-5), (1e-6, 1e-4)])
def test_policy_and_critic_have_their_own_learning_rate(
    learn: Callable[..., Learnt], measured: Experience, policy: float, critic: float
) -> None:
    moved = learn(measured, learning_rate=policy, critic_learning_rate=critic).moved
    # The first step of Adam is the learning rate times the gradient's sign.
    for of_critic, rate in ((False, policy), (True, critic)):
        steps = [value.abs().max() for name, value in moved.items() if (".policy." not in name) == of_critic]
        assert float(max(steps)) == pytest.approx(rate, rel=0.05)


@pytest.mark.parametrize(("epochs", "minibatches"), [(1, 1), (3, 1), (2, 4)])
def test_every_epoch_takes_a_step_per_minibatch(
    learn: Callable[..., Learnt], measured: Experience, epochs: int, minibatches: int
) -> None:
    optimiser = learn(measured, minibatches, epochs=epochs).optimiser
    assert {float(value) for name, value in optimiser.items() if name.startswith("step/")} == {epochs * minibatches}
