"""Reliability diagrams and calibration errors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgaif_ray.statistics.calibration import (
    estimate_calibration_error,
    expected_calibration_error,
    reliability_bins,
)
from fgaif_ray.statistics.folds import image_folds


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    probabilities = np.array([[0.9, 0.05, 0.05]] * 10)
    assert expected_calibration_error(probabilities, [0] * 7 + [1] * 3) == pytest.approx(0.2)


def test_reliability_bins_hold_every_verdict_once_and_their_mean_confidence_and_accuracy() -> None:
    probabilities = np.array([[0.9, 0.05, 0.05], [0.91, 0.05, 0.04], [0.4, 0.3, 0.3]])
    assert reliability_bins(probabilities, [0, 2, 0], bins=10) == [
        {"count": 1, "confidence": pytest.approx(0.4), "accuracy": 1},
        {"count": 2, "confidence": pytest.approx(0.905), "accuracy": 0.5},
    ]


def test_certain_and_right_predictions_are_calibrated() -> None:
    assert expected_calibration_error(np.eye(3), [0, 1, 2]) == 0


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=30))
def test_the_error_of_p_yes_is_that_of_each_bin_by_itself(drawn: list[tuple[int, bool]]) -> None:
    p_yes, right = np.array([place / 20 for place, _ in drawn]), np.array([outcome for _, outcome in drawn])
    found = estimate_calibration_error(["a"] * len(drawn), p_yes, right, np.ones(len(drawn)), 10)
    bins = np.minimum((p_yes * 10).astype(int), 9)
    expected = sum(abs((p_yes[bins == one] - right[bins == one]).sum()) for one in range(10)) / len(drawn)
    assert found.value == pytest.approx(expected)


def test_a_weight_stands_for_as_many_items() -> None:
    p_yes, right = np.array([0.9, 0.9, 0.2]), np.array([True, False, False])
    weights = np.array([3, 1, 2])
    weighted = estimate_calibration_error(["a"] * 3, p_yes, right, weights.astype(float), 10)
    repeated = estimate_calibration_error(["a"] * 6, p_yes.repeat(weights), right.repeat(weights), np.ones(6), 10)
    assert weighted.value == pytest.approx(repeated.value)


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=30), st.integers(1, 5))
def test_an_image_is_in_one_fold_and_no_fold_is_empty(images: list[str], folds: int) -> None:
    found = image_folds(images, folds)
    assert len(set(zip(images, found.tolist(), strict=True))) == len(set(images))
    assert set(found.tolist()) == set(range(min(folds, len(set(images)))))
