"""Figures of benchmark scores: intervals, paired differences, the table, and images by their official names."""

from pathlib import Path

import numpy as np
import pytest

from fgaif_ray.errors import UserError
from fgaif_ray.evaluation.benchmarks.base import Scores
from fgaif_ray.evaluation.benchmarks.images import ImageFolder
from fgaif_ray.evaluation.benchmarks.metrics import compare, measure, table
from fgaif_ray.statistics.intervals import ratios


def ratio_scores(images: list[str], parts: list[float]) -> Scores:
    columns = np.array([[part, 1.0] for part in parts])
    ids = tuple(str(n) for n in range(len(parts)))
    return Scores(ids, tuple(images), columns, {"rate": 100.0}, lambda sums: ratios(sums[:, :1], sums[:, 1:]))


def test_a_paired_difference_is_known_better_than_its_parts() -> None:
    images = [f"{n}.jpg" for n in range(60)]
    hard = [float(n % 2) for n in range(60)]
    easier = [part if n % 10 != 1 else 0.0 for n, part in enumerate(hard)]
    first, second = ratio_scores(images, hard), ratio_scores(images, easier)
    low, high = compare(first, second)["figures"]["rate"]["interval"]
    one = measure(first)["figures"]["rate"]["interval"]
    assert -0.2 < low < high < 0
    assert high - low < (one[1] - one[0]) * 0.7


def test_answers_about_one_image_are_drawn_together() -> None:
    parts = [float(n < 30) for n in range(60)]
    alone = measure(ratio_scores([str(n) for n in range(60)], parts))["figures"]["rate"]["interval"]
    together = measure(ratio_scores([str(n // 10) for n in range(60)], parts))["figures"]["rate"]["interval"]
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])


def test_only_shared_answers_are_compared() -> None:
    first = ratio_scores(["a", "b", "c"], [1.0, 0.0, 1.0])
    second = Scores(("1", "2", "9"), ("b", "c", "z"), first.columns, first.scales, first.figures)
    found = compare(first, second)
    assert found["answers"] == 2
    assert found["figures"]["rate"]["value"] == 0.0


def test_scores_of_two_benchmarks_cannot_be_compared() -> None:
    first = ratio_scores(["a"], [1.0])
    with pytest.raises(ValueError, match="one benchmark"):
        compare(first, Scores(first.ids, first.images, first.columns, {"other": 1.0}, first.figures))


def test_the_table_shows_percent_intervals_and_counts() -> None:
    scores = ratio_scores(["a", "a"], [1.0, 0.0])
    measured = measure(scores)
    measured["counts"] = {"unrated": 2, "unanswered": 0}
    lines = table("POPE", scores.scales, {"base": measured}, [])
    assert lines == [
        "POPE                    base",
        "  rate %   50.0 [50.0, 50.0]",
        "  unrated                  2",
    ]


def test_images_are_found_by_official_names(tmp_path: Path) -> None:
    for name in ("COCO_val2014_000000000042.jpg", "sub/AMBER_1.jpg", "5_o.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    folder = ImageFolder("pope", str(tmp_path))
    found = folder.find_all(["COCO_val2014_000000000042.jpg", "000000000042.jpg", "AMBER_1.jpg", "5_o.jpg"])
    assert [path.rsplit("/", 1)[-1] for path in found.values()] == [
        "COCO_val2014_000000000042.jpg",
        "COCO_val2014_000000000042.jpg",
        "AMBER_1.jpg",
        "5_o.png",
    ]
    with pytest.raises(UserError, match=r"1 of 2 images of pope are not in .* the first: none\.jpg"):
        folder.find_all(["none.jpg", "AMBER_1.jpg"])
