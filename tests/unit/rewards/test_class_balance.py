"""Probabilities of a reward model mean what they say, whatever the balance of the classes and their weights."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.paths import ROOT
from torch import nn

from fgaif_ray.records import CONSISTENT, HALLUCINATED
from fgaif_ray.rewards.class_balance import CLASS_WEIGHT_CAP, loss_weights
from fgaif_ray.rewards.metrics import signed_calibration
from fgaif_ray.rewards.model import RewardModel
from fgaif_ray.vlm.backbone import load_backbone

MIXES = {"mostly right": (0.2, 0.7, 0.1), "even": (0.4, 0.3, 0.3)}
NOISE = 1.0
"""Standard deviation of a feature around its class's corner: the classes overlap."""


def test_balanced_weights_are_inverse_frequencies_with_a_cap() -> None:
    found = loss_weights([0] * 50 + [1] * 49 + [2], "balanced")
    np.testing.assert_allclose(found, [100 / 150, 100 / 147, CLASS_WEIGHT_CAP])


def test_balanced_classes_weigh_one() -> None:
    np.testing.assert_allclose(loss_weights([0, 1, 2, 2, 1, 0], "balanced"), 1)


def test_a_class_that_does_not_occur_has_a_finite_weight() -> None:
    assert np.isfinite(loss_weights([0, 0, 1], "balanced")).all()


def test_without_weights_all_classes_weigh_one() -> None:
    np.testing.assert_array_equal(loss_weights([0] * 50 + [2], "none"), 1)


def drawn(mix: tuple[float, float, float], count: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Features ``[count, 3]`` around the corners of a triangle, and their classes."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(3, size=count, p=mix)
    return np.eye(3)[labels] * 2 + generator.normal(0, NOISE, (count, 3)), labels


def posterior(features: NDArray[np.float64], mix: tuple[float, float, float]) -> NDArray[np.float64]:
    """What Bayes gives, ``[count, 3]``."""
    distances = ((features[:, None, :] - 2 * np.eye(3)) ** 2).sum(axis=2)
    weights = np.array(mix) * np.exp(-distances / (2 * NOISE**2))
    found: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return found


def fitted(features: NDArray[np.float64], labels: NDArray[np.int64], kind: str) -> NDArray[np.float64]:
    """Probabilities of a linear head that was trained with the weights, as a reward model says them, ``[count, 3]``."""
    weights = loss_weights(labels, kind)  # type: ignore[arg-type]
    head = nn.Linear(3, 3)
    inputs, truth = torch.tensor(features, dtype=torch.float32), torch.tensor(labels)
    optimiser = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(head(inputs), truth, weight=torch.tensor(weights, dtype=torch.float32))
        loss.backward()
        return loss

    optimiser.step(closure)  # type: ignore[arg-type]
    model = RewardModel(load_backbone(str(ROOT / "fgaif_ray/shapes/checkpoints/policy")))
    model.class_weights["existence"] = weights
    with torch.no_grad():
        found: NDArray[np.float64] = model.probabilities("existence", head(inputs)).numpy()
    return found


@pytest.mark.parametrize("kind", ["balanced", "none"])
@pytest.mark.parametrize("mix", MIXES.values(), ids=list(MIXES))
def test_what_a_verdict_pays_is_what_it_is_worth(mix: tuple[float, float, float], kind: str) -> None:
    features, labels = drawn(mix, 20_000, seed=0)
    calibration = signed_calibration(fitted(features, labels, kind), labels)
    assert calibration["mean_reward"] == pytest.approx(calibration["mean_label"], abs=0.02)
    assert all(abs(one["reward"] - one["label"]) < 0.06 for one in calibration["bins"])


@pytest.mark.parametrize("mix", MIXES.values(), ids=list(MIXES))
def test_as_many_consistent_segments_are_paid_below_zero_as_bayes_says(mix: tuple[float, float, float]) -> None:
    features, labels = drawn(mix, 20_000, seed=1)
    shares = [
        float((found[:, CONSISTENT] < found[:, HALLUCINATED])[labels == CONSISTENT].mean())
        for found in (fitted(features, labels, "balanced"), posterior(features, mix))
    ]
    assert shares[0] == pytest.approx(shares[1], abs=0.01)
