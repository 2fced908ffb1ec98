"""Reliability figures against worked examples from their papers, and their intervals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgaif_ray.statistics.agreement import accuracy, agreement, balanced_accuracy, cohens_kappa
from fgaif_ray.statistics.intervals import estimate_ratios
from fgaif_ray.statistics.reliability import (
    MISSING,
    coincidences,
    estimate_agreement,
    estimate_alpha,
    krippendorff_alpha,
)

# Four observers, twelve units: example C of "Computing Krippendorff's Alpha-Reliability" (2011), with codes from 0.
KRIPPENDORFF_C = """
1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 .
"""
# Two observers, ten units: example A of the same.
KRIPPENDORFF_A = """
0 1 0 0 0 0 0 0 1 0
1 1 1 0 0 1 0 0 0 0
"""
labels = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40)


def ratings(text: str, first: int) -> np.ndarray:
    rows = [line.split() for line in text.strip().splitlines()]
    return np.array([[MISSING if cell == "." else int(cell) - first for cell in row] for row in rows])


def alpha(rated: np.ndarray, classes: int) -> float:
    return float(krippendorff_alpha(coincidences(rated, classes).sum(axis=0)))


def test_kappa_of_cohens_own_table() -> None:
    """Cohen 1960: observed .70, expected .60 * .50 + .30 * .30 + .10 * .20 = .41, kappa = .29 / .59."""
    table = [[0.44, 0.05, 0.01], [0.07, 0.20, 0.03], [0.09, 0.05, 0.06]]
    assert cohens_kappa(table) == pytest.approx(0.29 / 0.59)


def test_kappa_of_a_table_computed_by_hand() -> None:
    """Both say yes 20 times and no 15: observed 0.7, expected 0.5 * 0.6 + 0.5 * 0.4 = 0.5."""
    assert cohens_kappa([[20, 5], [10, 15]]) == pytest.approx(0.4)


def test_alpha_of_several_observers_with_missing_values() -> None:
    assert alpha(ratings(KRIPPENDORFF_C, 1), 5) == pytest.approx(0.743, abs=5e-4)


def test_alpha_of_two_observers() -> None:
    """14 of 20 values 0, 6 of them 1, 4 pairs differ: 1 - 19 * 8 / (2 * 14 * 6) = 0.095."""
    assert alpha(ratings(KRIPPENDORFF_A, 0), 2) == pytest.approx(1 - 19 * 8 / 168)


def test_a_unit_with_one_rating_changes_nothing() -> None:
    rated = ratings(KRIPPENDORFF_A, 0)
    lonely = np.concatenate([rated, [[1], [MISSING]]], axis=1)
    assert alpha(lonely, 2) == alpha(rated, 2)


def test_alpha_does_not_depend_on_the_order_of_annotators() -> None:
    rated = ratings(KRIPPENDORFF_C, 1)
    assert alpha(rated[::-1], 5) == pytest.approx(alpha(rated, 5))


@pytest.mark.parametrize("figure", [cohens_kappa, krippendorff_alpha])
def test_chance_corrected_figures_need_two_classes(figure) -> None:
    assert np.isnan(figure([[10, 0], [0, 0]]))
    assert np.isnan(figure([[0, 0], [0, 0]]))


def test_agreement_without_exception_is_one() -> None:
    assert cohens_kappa([[7, 0], [0, 3]]) == pytest.approx(1)
    assert alpha(np.array([[0, 1, 2], [0, 1, 2]]), 3) == pytest.approx(1)


@given(labels)
@settings(deadline=None)
def test_accuracies_are_those_of_the_comparison(pairs: list[tuple[int, int]]) -> None:
    found = agreement(*zip(*pairs, strict=True))
    assert accuracy(found.confusion) == pytest.approx(found.accuracy)
    assert balanced_accuracy(found.confusion) == pytest.approx(found.balanced_accuracy)


@given(labels, st.integers(1, 4))
@settings(deadline=None, max_examples=25)
def test_a_weight_counts_as_so_many_units(pairs: list[tuple[int, int]], weight: int) -> None:
    truth, predicted = map(list, zip(*pairs, strict=True))
    images = [str(index) for index in range(len(pairs))]
    weights = [weight] + [1] * (len(pairs) - 1)
    weighted = estimate_agreement(images, truth, predicted, 3, weights=weights, draws=1)
    repeated = estimate_agreement(
        [images[0]] * (weight - 1) + images,
        [truth[0]] * (weight - 1) + truth,
        [predicted[0]] * (weight - 1) + predicted,
        3,
        draws=1,
    )
    for name, estimate in weighted.items():
        assert estimate.value == pytest.approx(repeated[name].value)


def test_intervals_enclose_the_figures_and_are_repeatable() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 3, 300)
    predicted = np.where(generator.random(300) < 0.8, truth, generator.integers(0, 3, 300))
    images = [str(index // 3) for index in range(300)]
    found = estimate_agreement(images, truth, predicted, 3, seed=4)
    assert found == estimate_agreement(images, truth, predicted, 3, seed=4)
    for estimate in found.values():
        assert estimate.interval[0] < estimate.value < estimate.interval[1]


def test_the_interval_of_accuracy_is_that_of_its_ratio() -> None:
    truth, predicted, images = [0, 1, 1, 2, 0, 1], [0, 1, 0, 2, 1, 1], list("aabbcc")
    found = estimate_agreement(images, truth, predicted, 3, seed=1)["accuracy"]
    hits = [float(a == b) for a, b in zip(truth, predicted, strict=True)]
    assert found == estimate_ratios(images, {"share": hits}, {"share": [1.0] * 6}, seed=1)["share"]


def test_images_are_drawn_whole() -> None:
    """All right in one image, all wrong in the other: draws of single segments would give a narrow interval."""
    truth, predicted = [0, 1] * 100, [0, 1] * 50 + [1, 0] * 50
    found = estimate_agreement(["a"] * 100 + ["b"] * 100, truth, predicted, 2)["accuracy"]
    assert (found.value, found.interval) == (0.5, (0.0, 1.0))


def test_alpha_has_an_interval_over_images() -> None:
    generator = np.random.default_rng(1)
    first = generator.integers(0, 3, 120)
    second = np.where(generator.random(120) < 0.7, first, generator.integers(0, 3, 120))
    found = estimate_alpha([str(index // 2) for index in range(120)], [first, second], 3)
    assert found.interval[0] < found.value < found.interval[1]
    assert found.value == pytest.approx(alpha(np.array([first, second]), 3))


def test_nothing_to_compare_gives_no_figures() -> None:
    assert all(estimate.value is None for estimate in estimate_agreement([], [], [], 3).values())
    assert estimate_alpha([], np.zeros((2, 0), dtype=int), 3).value is None


@pytest.mark.parametrize(
    ("truth", "predicted", "weights"), [([0], [0, 1], None), ([3, 0], [0, 0], None), ([0, 0], [0, 0], [1])]
)
def test_what_cannot_be_compared_is_refused(truth, predicted, weights) -> None:
    with pytest.raises(ValueError):
        estimate_agreement(["a", "b"], truth, predicted, 3, weights=weights)


@pytest.mark.parametrize("rated", [[0, 1], [[0, 3]], [[0, -2]]])
def test_ratings_without_a_class_are_refused(rated) -> None:
    with pytest.raises(ValueError):
        coincidences(rated, 3)
