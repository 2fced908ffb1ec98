"""Figures of labels against the truth."""

from typing import Any

import pytest

from fgaif_ray.feedback.metrics import FeedbackMetrics


def test_figures_compare_labels_with_the_truth() -> None:
    def row(existence: int) -> dict[str, Any]:
        labels = {"existence": existence, "attribute": 0, "relation": 0}
        return {"segments": [{"facts": [], "labels": labels}], "truth": 1}

    figures = FeedbackMetrics(lambda row: [{"existence": row["truth"], "attribute": 0, "relation": 0}])
    for existence in (1, 1, 1, 2, 0):
        figures.add(row(existence))
    found = figures.to_dict()["agreement"]["existence"]
    assert found["balanced_accuracy"] == pytest.approx(3 / 5)
    assert found["balanced_accuracy_present"] == pytest.approx(3 / 4)
