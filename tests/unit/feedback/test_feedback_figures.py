"""Figures of labels against the truth."""

import pytest
from support.labelled import feedback, segment_by_ai

from fgaif_ray.feedback.metrics import FeedbackMetrics
from fgaif_ray.records import FACT_TYPES


def test_figures_compare_labels_with_the_truth() -> None:
    figures = FeedbackMetrics(FACT_TYPES, lambda _: [{"existence": 1, "attribute": 0, "relation": 0}])
    for existence in (1, 1, 1, 2, 0):
        figures.add(feedback("a", segment_by_ai("A dog.", (existence, 0, 0))))
    found = figures.to_dict()["agreement"]["existence"]
    assert found["balanced_accuracy"] == pytest.approx(3 / 5)
    assert found["balanced_accuracy_present"] == pytest.approx(3 / 4)
