"""Tables of plain text for a terminal."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any


def table_lines(rows: Sequence[Sequence[str]], right: Collection[int] = (), rule: bool = False) -> list[str]:
    """The lines of a table whose columns are as wide as their widest cell, two spaces apart.

    Args:
        rows: cells; the first row is the head, and a shorter row ends with empty cells.
        right: numbers of the columns whose cells stand at the right.
        rule: whether a line of dashes follows the head.

    Example: ``table_lines([("fact", "count"), ("object", "7")], right={1})``
    """
    columns = max(map(len, rows))
    full = [[*row, *[""] * (columns - len(row))] for row in rows]
    widths = [max(len(row[column]) for row in full) for column in range(columns)]
    if rule:
        full.insert(1, ["-" * width for width in widths])
    return ["  ".join(_padded(row[at], widths[at], at in right) for at in range(columns)).rstrip() for row in full]


def _padded(cell: str, width: int, right: bool) -> str:
    return cell.rjust(width) if right else cell.ljust(width)


def estimate_cell(estimate: Mapping[str, Any]) -> str:
    """A metric with its interval, e.g. ``0.912 [0.870, 0.940]``; ``-`` where there is none.

    Args:
        estimate: ``value`` and ``interval``, either of them None where it is not known.
    """
    if estimate["value"] is None:
        return "-"
    if estimate["interval"] is None:
        return f"{estimate['value']:.3f}"
    low, high = estimate["interval"]
    return f"{estimate['value']:.3f} [{low:.3f}, {high:.3f}]"
