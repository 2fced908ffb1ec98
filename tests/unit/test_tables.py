"""Tables of plain text."""

import pytest

from fgaif_ray.tables import estimate_cell, table_lines


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert table_lines([("fact", "count"), ("object", "7")]) == ["fact    count", "object  7"]


def test_figures_stand_at_the_right() -> None:
    assert table_lines([("fact", "count"), ("object", "7")], right={1}) == ["fact    count", "object      7"]


def test_a_short_row_ends_with_empty_cells() -> None:
    assert table_lines([("a", "b"), ("long",)]) == ["a     b", "long"]


def test_a_rule_follows_the_head() -> None:
    assert table_lines([("a", "b"), ("long", "c")], rule=True) == ["a     b", "----  -", "long  c"]


@pytest.mark.parametrize(
    ("value", "interval", "cell"),
    [(None, None, "-"), (0.5, None, "0.500"), (0.5, [0.25, 0.75], "0.500 [0.250, 0.750]")],
)
def test_an_estimate_shows_its_interval_where_there_is_one(
    value: float | None, interval: list[float] | None, cell: str
) -> None:
    assert estimate_cell({"value": value, "interval": interval}) == cell
