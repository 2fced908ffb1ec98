"""A step on preferences with the tiny policy: what it learns, from which tokens, and that its parts add up."""

import math
from typing import Any

import pytest
import torch
from PIL import Image
from support.ppo_steps import difference, group, new_model

from fgaif_ray.config import DPOConfig
from fgaif_ray.preferences.encoding import EncodedPair
from fgaif_ray.preferences.step import DPOUpdater
from fgaif_ray.rl.policy import PolicyModel

PROMPT = "Describe this image in detail."
CONFIG = DPOConfig(learning_rate=1e-3, beta=0.5, micro_batch_size=8, schedule="constant", max_grad_norm=1e9)
PAIRS = [
    EncodedPair(("a.png",), PROMPT, (), (60, 61, 62), (70, 71)),
    EncodedPair(("a.png",), PROMPT, (80, 81), (63,), (72, 73, 74)),
    EncodedPair(("b.png",), PROMPT, (82,), (64, 65), (75,)),
]
PICTURES = {"a.png": Image.new("RGB", (60, 60), "red"), "b.png": Image.new("RGB", (60, 60), "white")}
IMAGES = [tuple(PICTURES[path] for path in pair.images) for pair in PAIRS]


@pytest.fixture(scope="module")
def model() -> PolicyModel:
    """A policy that differs from the reference."""
    model = new_model()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.policy_parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def step(
    model: PolicyModel, pairs: list[EncodedPair] = PAIRS, steps: int = 1, **options: Any
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """The metrics of steps from the model as it is, and the policy after them; the model is put back."""
    before = model.trained_state()
    updater = DPOUpdater(model, CONFIG.model_copy(update=options), group(), 10)
    images = [tuple(PICTURES[path] for path in pair.images) for pair in pairs]
    metrics = [updater.update(pairs, images, number) for number in range(steps)]
    after = model.trained_state()
    model.load_trained_state(before)
    return metrics, after


def log_probs(model: PolicyModel, role: Any, pair: EncodedPair, ids: tuple[int, ...]) -> float:
    """Of the ids after prompt and context, nats; the context is scored too, and taken off."""
    with torch.no_grad():
        scored = model.log_probs(model.encode([PROMPT], [PICTURES[pair.images[0]]], [(*pair.context, *ids)]), role)
    return float(scored.log_probs[0, len(pair.context) :].sum())


def ratio(model: PolicyModel, pair: EncodedPair, ids: tuple[int, ...]) -> float:
    return log_probs(model, "policy", pair, ids) - log_probs(model, "reference", pair, ids)


def test_the_loss_is_that_of_the_tokens_after_the_context(model: PolicyModel) -> None:
    ratios = [[ratio(model, pair, side) for side in (pair.chosen, pair.rejected)] for pair in PAIRS]
    expected = [math.log1p(math.exp(-0.5 * (chosen - rejected))) for chosen, rejected in ratios]
    [metrics], _ = step(model)
    assert metrics["dpo/loss"] == pytest.approx(sum(expected) / 3, rel=1e-4)
    assert metrics["dpo/chosen_reward"] == pytest.approx(sum(0.5 * chosen for chosen, _ in ratios) / 3, rel=1e-3)
    assert metrics["dpo/told_apart"] == pytest.approx(sum(chosen > rejected for chosen, rejected in ratios) / 3)


def test_steps_tell_pairs_apart(model: PolicyModel) -> None:
    metrics, _ = step(model, steps=8)
    assert metrics[-1]["dpo/told_apart"] == 1
    assert metrics[-1]["dpo/loss"] < 0.5 * metrics[0]["dpo/loss"]
    assert metrics[-1]["dpo/margin"] > metrics[0]["dpo/margin"]
    assert all(one["update/skipped"] == 0 for one in metrics)


def test_passes_of_any_size_make_the_same_step(model: PolicyModel) -> None:
    before, gradients = model.trained_state(), []
    for size in (8, 1):
        updater = DPOUpdater(model, CONFIG.model_copy(update={"micro_batch_size": size}), group(), 10)
        gradients.append((updater.update(PAIRS, IMAGES, 0), updater.state_dict()))
        model.load_trained_state(before)
    (whole, moments), (parts, others) = gradients
    assert parts == pytest.approx(whole, rel=1e-4)
    assert difference(moments, others) < 1e-6  # Adam's first step takes the sign of a gradient: it shows rounding


def test_the_reference_does_not_move(model: PolicyModel) -> None:
    before = log_probs(model, "reference", PAIRS[0], PAIRS[0].chosen)
    kept = model.trained_state()
    DPOUpdater(model, CONFIG, group(), 10).update(PAIRS, IMAGES, 0)
    assert log_probs(model, "reference", PAIRS[0], PAIRS[0].chosen) == before
    model.load_trained_state(kept)


def test_lengths_weigh_nothing_where_they_are_normalised(model: PolicyModel) -> None:
    [metrics], _ = step(model, PAIRS[1:2], length_normalisation=True)
    pair = PAIRS[1]
    chosen, rejected = (ratio(model, pair, side) / len(side) for side in (pair.chosen, pair.rejected))
    assert metrics["dpo/chosen_reward"] == pytest.approx(0.5 * chosen, rel=1e-3)
    assert metrics["dpo/rejected_reward"] == pytest.approx(0.5 * rejected, rel=1e-3)


@pytest.mark.parametrize("options", [{"beta": 2.0}, {"learning_rate": 1e-4}, {"max_grad_norm": 1e-6}])
def test_options_of_the_update_count(model: PolicyModel, options: dict[str, float]) -> None:
    assert difference(step(model)[1], step(model, steps=1, **options)[1]) > 1e-6


def test_the_rate_rises_and_falls(model: PolicyModel) -> None:
    metrics, _ = step(model, PAIRS[:1], steps=4, schedule="linear", warmup_steps=2)
    assert [one["update/learning_rate_scale"] for one in metrics] == pytest.approx([0.5, 1, 1, 0.875])


def test_a_gradient_that_is_not_finite_is_left_out(model: PolicyModel) -> None:
    before = model.trained_state()
    updater = DPOUpdater(model, CONFIG, group(), 10)
    for parameter in model.policy_parameters().values():
        parameter.grad = torch.full_like(parameter, math.nan)
    metrics = updater.update(PAIRS, IMAGES, 0)
    assert metrics["update/skipped"] == 1
    assert difference(model.trained_state(), before) == 0


def test_a_saved_optimiser_goes_on(model: PolicyModel) -> None:
    before = model.trained_state()
    updater = DPOUpdater(model, CONFIG, group(), 10)
    for number in range(2):
        updater.update(PAIRS, IMAGES, number)
    straight = model.trained_state()
    model.load_trained_state(before)
    first = DPOUpdater(model, CONFIG, group(), 10)
    first.update(PAIRS, IMAGES, 0)
    second = DPOUpdater(model, CONFIG, group(), 10)
    second.load_state_dict(first.state_dict())
    second.update(PAIRS, IMAGES, 1)
    assert difference(model.trained_state(), straight) == 0
    model.load_trained_state(before)
