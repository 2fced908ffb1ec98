"""Agreement figures, with the classes that are absent."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgaif_ray.statistics.agreement import agreement, confusion_matrix

codes = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=50)


def test_figures_of_a_small_comparison() -> None:
    result = agreement([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2])
    assert result.confusion.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert result.accuracy == pytest.approx(4 / 6)
    assert result.recall == pytest.approx((2 / 3, 1 / 2, 1))
    assert result.precision == pytest.approx((1, 1 / 2, 1 / 2))
    assert result.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)


def test_always_yes_on_an_imbalanced_set_is_no_better_than_chance() -> None:
    """Accuracy alone would say 80 % here (METHOD mistake 11)."""
    result = agreement([1] * 80 + [2] * 20, [1] * 100)
    assert result.accuracy == 0.8
    assert result.balanced_accuracy == 0.5


def test_classes_that_do_not_occur_have_no_figures() -> None:
    result = agreement([1, 1, 1], [1, 1, 0])
    assert (result.recall, result.precision) == ((None, 2 / 3, None), (0, 1, None))
    assert result.balanced_accuracy == pytest.approx(2 / 3)


def test_no_items_give_no_figures() -> None:
    result = agreement([], [])
    assert (result.accuracy, result.balanced_accuracy) == (None, None)
    assert result.recall == result.precision == (None, None, None)


def test_figures_are_written_by_class_name_without_nan() -> None:
    written = agreement([1, 2], [1, 1]).to_dict()
    assert json.loads(json.dumps(written, allow_nan=False)) == {
        "count": 2,
        "accuracy": 0.5,
        "balanced_accuracy": 0.5,
        "precision": {"absent": None, "consistent": 0.5, "hallucinated": None},
        "recall": {"absent": None, "consistent": 1.0, "hallucinated": 0.0},
        "support": {"absent": 0, "consistent": 1, "hallucinated": 1},
        "confusion": [[0, 0, 0], [0, 1, 0], [0, 1, 0]],
    }


@given(codes)
@settings(deadline=None)
def test_figures_follow_from_counting(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = (np.array(column) for column in zip(*pairs, strict=True))
    result = agreement(truth, predicted)
    assert result.accuracy == pytest.approx(np.mean(truth == predicted))
    recalls = [np.mean(predicted[truth == code] == code) for code in np.unique(truth)]
    assert result.balanced_accuracy == pytest.approx(np.mean(recalls))


@pytest.mark.parametrize(("truth", "predicted"), [([0], [0, 1]), ([3], [0]), ([0], [-1]), ([[0]], [[0]])])
def test_codes_that_cannot_be_compared_are_refused(truth: list[int], predicted: list[int]) -> None:
    with pytest.raises(ValueError):
        confusion_matrix(truth, predicted, 3)
