import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgaif_ray.rewards.metrics import (
    LARGEST_TEMPERATURE,
    area_under_roc,
    cross_fitted_probabilities,
    fit_temperature,
    held_out_figures,
    negative_log_likelihood,
    ranking_figures,
    scale_probabilities,
)

SCORED = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40)


def drawn(count: int, sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from distributions, and these distributions made ``sharpness`` times surer."""
    generator = np.random.default_rng(seed)
    true = scale_probabilities(generator.dirichlet([0.7, 0.7, 0.7], count), 1.0)
    labels = np.array([generator.choice(3, p=row) for row in true])
    return scale_probabilities(true, 1 / sharpness), labels


# Ranking


@given(SCORED)
def test_the_area_is_the_share_of_pairs_in_order_with_ties_half(scored: list[tuple[int, bool]]) -> None:
    positive = [score for score, label in scored if label]
    negative = [score for score, label in scored if not label]
    found = area_under_roc([score for score, _ in scored], [label for _, label in scored])
    if not positive or not negative:
        assert found is None
        return
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert found == pytest.approx(sum(pairs) / len(pairs))


def test_each_class_is_ranked_against_the_rest() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.6, 0.3], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
    figures = ranking_figures(probabilities, [0, 1, 2, 2])
    assert figures["absent"] == figures["consistent"] == 1
    assert figures["hallucinated"] == pytest.approx(3.5 / 4)


def test_hallucinated_against_consistent_is_about_facts_alone() -> None:
    # Among facts the order is right; how sure the model is that there is a fact, and the third row, do not matter.
    probabilities = np.array([[0.9, 0.04, 0.06], [0.0, 0.7, 0.3], [0.05, 0.0, 0.95]])
    assert ranking_figures(probabilities, [2, 1, 0])["hallucinated_vs_consistent"] == 1


def test_a_class_that_does_not_occur_has_no_area() -> None:
    figures = ranking_figures(np.full((4, 3), 1 / 3), [0, 1, 1, 0])
    assert figures["hallucinated"] is figures["hallucinated_vs_consistent"] is None


# Calibration


def test_reliability_is_kept_before_and_after_scaling() -> None:
    probabilities, labels = drawn(500, 3.0)
    figures = held_out_figures(probabilities, labels, [str(index // 10) for index in range(500)])
    for name in ("", "_scaled"):
        points = figures[f"reliability{name}"]
        assert sum(point["count"] for point in points) == 500
        gaps = sum(point["count"] * abs(point["confidence"] - point["accuracy"]) for point in points) / 500
        assert gaps == pytest.approx(figures[f"expected_calibration_error{name}"])


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_how_much_too_sure_a_model_is(sharpness: float) -> None:
    assert fit_temperature(*drawn(20_000, sharpness)) == pytest.approx(sharpness, rel=0.05)


def test_predictions_without_a_mistake_have_a_finite_temperature() -> None:
    temperature = fit_temperature(scale_probabilities(np.eye(3) + 0.1, 1.0), [0, 1, 2])
    assert 1 / LARGEST_TEMPERATURE <= temperature < 0.2
    assert np.isfinite(scale_probabilities(np.eye(3), 1 / LARGEST_TEMPERATURE)).all()


@given(st.integers(0, 50), st.floats(0.1, 10))
def test_a_temperature_never_changes_the_most_probable_class(seed: int, temperature: float) -> None:
    probabilities = np.random.default_rng(seed).dirichlet([1, 1, 1], 5)
    scaled = scale_probabilities(probabilities, temperature)
    assert scaled.argmax(axis=1).tolist() == probabilities.argmax(axis=1).tolist()
    np.testing.assert_allclose(scaled.sum(axis=1), 1)


def test_a_verdict_is_scaled_with_a_temperature_of_other_images() -> None:
    sure, unsure = drawn(200, 4.0, seed=1), drawn(200, 0.5, seed=2)
    probabilities, labels = (np.concatenate(parts) for parts in zip(sure, unsure, strict=True))
    found = cross_fitted_probabilities(probabilities, labels, ["a"] * 200 + ["b"] * 200)
    assert found is not None
    np.testing.assert_allclose(found[:200], scale_probabilities(sure[0], fit_temperature(*unsure)))
    np.testing.assert_allclose(found[200:], scale_probabilities(unsure[0], fit_temperature(*sure)))


def test_a_single_image_leaves_nothing_to_fit_on() -> None:
    probabilities, labels = drawn(10, 1.0)
    assert cross_fitted_probabilities(probabilities, labels, ["a"] * 10) is None
    assert held_out_figures(probabilities, labels, ["a"] * 10)["expected_calibration_error_scaled"] is None


def test_scaling_mends_the_calibration_of_a_model_that_is_too_sure() -> None:
    probabilities, labels = drawn(2_000, 3.0)
    figures = held_out_figures(probabilities, labels, [str(index // 10) for index in range(2_000)])
    assert figures["expected_calibration_error_scaled"] < figures["expected_calibration_error"] / 2
    assert figures["negative_log_likelihood_scaled"] < figures["negative_log_likelihood"]
    assert figures["negative_log_likelihood"] == pytest.approx(negative_log_likelihood(probabilities, labels))
