"""Ranks under weights: equal to the metrics of the items written out, and to scikit-learn's definitions by hand."""

import numpy as np
import pytest

from fgaif_ray.rewards.metrics import area_under_roc
from fgaif_ray.statistics.intervals import estimate_weighted
from fgaif_ray.statistics.ranking import Ranking

RANDOM = np.random.default_rng(5)
SCORES = RANDOM.integers(0, 6, 40) / 5  # with ties
POSITIVE = RANDOM.random(40) < 0.3


def test_the_area_is_that_of_the_unweighted_statistic() -> None:
    found = Ranking(SCORES, POSITIVE).figures(np.ones((1, 40)))
    assert found[0, 0] == pytest.approx(area_under_roc(SCORES, POSITIVE))


def test_a_weight_is_a_number_of_copies() -> None:
    weights = RANDOM.integers(0, 4, (3, 40))
    found = Ranking(SCORES, POSITIVE).figures(weights.astype(float))
    for row, times in zip(found, weights, strict=True):
        copies = Ranking(np.repeat(SCORES, times), np.repeat(POSITIVE, times))
        assert row == pytest.approx(copies.figures(np.ones((1, times.sum())))[0])


def test_average_precision_by_hand() -> None:
    found = Ranking([0.9, 0.8, 0.7, 0.1], [True, False, True, False]).figures(np.ones((1, 4)))
    assert found[0].tolist() == pytest.approx([0.75, (1 + 2 / 3) / 2])


def test_equal_scores_rank_by_chance() -> None:
    found = Ranking([0.5] * 4, [True, False, False, False]).figures(np.ones((1, 4)))
    assert found[0].tolist() == [0.5, 0.25]


@pytest.mark.parametrize("positive", [True, False])
def test_one_class_alone_has_no_area(positive: bool) -> None:
    found = Ranking([0.1, 0.2], [positive] * 2).figures(np.ones((1, 2)))
    assert np.isnan(found[0, 0])


def test_the_interval_of_a_weighted_metric_draws_clusters() -> None:
    values = np.repeat(RANDOM.random(20), 10)

    def mean(weights: np.ndarray) -> np.ndarray:
        return (weights @ values / weights.sum(axis=1))[:, None]

    (together,) = estimate_weighted([str(n // 10) for n in range(200)], mean)
    (alone,) = estimate_weighted([str(n) for n in range(200)], mean)
    assert together.value == alone.value == pytest.approx(values.mean())
    assert together.interval is not None and alone.interval is not None
    assert together.interval[1] - together.interval[0] > 2 * (alone.interval[1] - alone.interval[0])
