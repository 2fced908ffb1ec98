"""KL divergence from the policy to the reference: estimators, penalised rewards, and controllers of its weight."""

import math
from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]

# Ziegler et al. bound the proportional error, so that one odd batch moves the coefficient little.
MAX_PROPORTIONAL_ERROR = 0.2


def kl_estimate(log_probs: Tensor, reference_log_probs: Tensor, estimator: KLEstimator = "k1") -> Tensor:
    """Estimate KL(policy || reference) per token in nats, for tokens that the policy sampled.

    With d = log policy - log reference (Schulman, "Approximating KL divergence"):
    k1 = d is unbiased; k2 = d^2 / 2 is biased, never negative, and its gradient is the KL's; k3 =
    exp(-d) - 1 + d is unbiased and never negative.

    Args:
        log_probs: any shape, of the tokens that the policy sampled.
        reference_log_probs: the same shape, of the same tokens.
        estimator: k1, k2 or k3.

    Returns:
        The same shape.

    Raises:
        ValueError: the shapes differ or the estimator is unknown.
    """
    if log_probs.shape != reference_log_probs.shape:
        raise ValueError(f"log-probs differ in shape: {list(log_probs.shape)}, {list(reference_log_probs.shape)}")
    difference = log_probs - reference_log_probs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference.square()
    if estimator == "k3":
        # expm1 keeps the small values exact that exp(-d) - 1 would lose.
        return torch.expm1(-difference) + difference
    raise ValueError(f"estimator must be 'k1', 'k2' or 'k3', not {estimator!r}")


def penalised_rewards(token_rewards: Tensor, kl: Tensor, beta: float, mask: Tensor) -> Tensor:
    """Return reward_t - beta * kl_t: moving away from the reference costs. Padding is set to zero.

    Args:
        token_rewards: `[batch, response_tokens]`.
        kl: `[batch, response_tokens]` from `kl_estimate`.
        beta: weight of the penalty, at least 0.
        mask: `[batch, response_tokens]` bool, true on real tokens.

    Raises:
        ValueError: beta is negative.
    """
    if not beta >= 0:
        raise ValueError(f"beta must be at least 0, not {beta}: a negative one would pay for divergence")
    return torch.where(mask, token_rewards - beta * kl, torch.zeros_like(token_rewards))  # [batch, response_tokens]


class KLController(Protocol):
    """Holds the weight of the KL penalty and may move it after each rollout batch."""

    beta: float

    def update(self, observed_kl: float, samples: int) -> None:
        """Take the mean KL of a batch of `samples` responses."""

    def state_dict(self) -> dict[str, float]:
        """Return the state that a resumed run needs."""

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore a `state_dict`."""


class FixedKLController:
    """A constant weight (FGAIF: 0.1)."""

    def __init__(self, beta: float) -> None:
        """Raises ValueError where beta is negative or not finite."""
        self.beta = _checked_beta(beta)

    def update(self, observed_kl: float, samples: int) -> None:
        """Does nothing: the weight is fixed."""

    def state_dict(self) -> dict[str, float]:
        """Return the state that a resumed run needs."""
        return {"beta": self.beta}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Raises ValueError where the state is not a controller's."""
        self.beta = _beta_of_state(state)


class AdaptiveKLController:
    """Moves the weight so that the observed KL stays near a target.

    Ziegler et al., "Fine-tuning language models from human preferences", section 2.2: beta is multiplied by
    1 + error * samples / horizon, where error = clip(observed / target - 1, -0.2, 0.2).
    """

    def __init__(self, beta: float, target: float, horizon: int) -> None:
        """Starts at a weight.

        Args:
            beta: initial weight; more than 0, since a product never leaves 0.
            target: KL to hold, in nats, in whatever unit `update` is given (per response in the paper).
            horizon: responses over which a lasting error of 1 % moves the weight by about 1 %.

        Raises:
            ValueError: an argument is not positive.
        """
        if not (_checked_beta(beta) > 0 and target > 0 and horizon > 0):
            raise ValueError(f"beta, target and horizon must be positive, not {beta}, {target}, {horizon}")
        self.beta = float(beta)
        self.target = float(target)
        self.horizon = horizon

    def update(self, observed_kl: float, samples: int) -> None:
        """Take the mean KL of a batch of `samples` responses.

        A batch larger than the horizon counts as one horizon, or the weight could turn negative.

        Raises:
            ValueError: the KL is not finite; a skipped step must not be reported.
        """
        if not math.isfinite(observed_kl):
            raise ValueError(f"the observed KL is {observed_kl}")
        error = min(max(observed_kl / self.target - 1.0, -MAX_PROPORTIONAL_ERROR), MAX_PROPORTIONAL_ERROR)
        self.beta *= 1.0 + error * min(samples / self.horizon, 1.0)

    def state_dict(self) -> dict[str, float]:
        """Return the state that a resumed run needs."""
        return {"beta": self.beta}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Raises ValueError where the state is not a controller's."""
        self.beta = _beta_of_state(state)


def _beta_of_state(state: Mapping[str, float]) -> float:
    if set(state) != {"beta"}:
        raise ValueError(f"the state of a KL controller holds 'beta', not {sorted(state)}")
    return _checked_beta(state["beta"])


def _checked_beta(beta: float) -> float:
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(f"beta must be finite and at least 0, not {beta}")
    return float(beta)
