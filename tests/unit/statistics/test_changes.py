"""Changes of ratios: of what both sides have, with intervals that pair by image."""

import numpy as np
import pytest

from fgaif_ray.statistics.changes import CountedRows, estimate_changes
from fgaif_ray.statistics.intervals import estimate_ratios


def rows(images: list[str], parts: list[int], wholes: list[int]) -> CountedRows:
    return CountedRows(images, {"rate": parts}, {"rate": wholes})


def test_a_change_is_the_difference_of_the_ratios() -> None:
    before, after = rows(["a", "b"], [1, 3], [4, 4]), rows(["b", "a"], [1, 0], [4, 4])
    assert estimate_changes(before, after)["rate"].value == pytest.approx(1 / 8 - 4 / 8)


def test_images_that_one_side_lacks_do_not_count() -> None:
    before, after = rows(["a", "b"], [1, 4], [4, 4]), rows(["a", "c"], [2, 0], [4, 4])
    assert estimate_changes(before, after)["rate"].value == pytest.approx(1 / 4)


def test_what_is_hard_for_both_does_not_widen_the_interval() -> None:
    generator = np.random.default_rng(0)
    images = [f"{index}.png" for index in range(60)]
    hard = generator.integers(1, 9, 60)
    before = rows(images, hard.tolist(), [10] * 60)
    after = rows(images, (hard - 1).tolist(), [10] * 60)
    change = estimate_changes(before, after)["rate"]
    assert change.bounds == pytest.approx([-0.1, -0.1])
    (low, high) = estimate_ratios(images, before.parts, before.wholes)["rate"].interval or (0, 0)
    assert high - low > 0.05


def test_nothing_shared_has_no_change() -> None:
    found = estimate_changes(rows(["a"], [1], [2]), rows(["b"], [1], [2]))["rate"]
    assert (found.value, found.interval) == (None, None)


def test_sides_of_other_metrics_are_refused() -> None:
    with pytest.raises(ValueError, match="same metrics"):
        estimate_changes(rows(["a"], [1], [2]), CountedRows(["a"], {"other": [1]}, {"other": [1]}))
