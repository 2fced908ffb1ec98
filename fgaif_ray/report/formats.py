"""Numbers as a person reads them; an unmeasured one is a dash."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

DASH: Final = "\u2013"
LOWER_IS_BETTER, HIGHER_IS_BETTER, NEITHER = -1, 1, 0


def show_share(value: float | None, digits: int = 1) -> str:
    """Format a share as a percentage."""
    return DASH if value is None else f"{100 * value:.{digits}f}\u202f%"


def show_number(value: float | None, digits: int = 2) -> str:
    """Format a number with a fixed number of decimals."""
    return DASH if value is None else f"{value:.{digits}f}".replace("-", "\u2212")


def show_signed(value: float | None, digits: int = 2) -> str:
    """Format a number with its sign."""
    # Adding zero turns a rounded -0.0 into 0.0.
    return DASH if value is None else f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "\u2212")


def show_count(value: float | None) -> str:
    """Format a count with separated thousands."""
    return DASH if value is None else f"{round(value):,}".replace(",", "\u202f")


def show_clock(seconds: float) -> str:
    """Format a duration, e.g. ``"8.0 s"``, ``"3 min 20 s"``, ``"2 h 05 min"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def show(value: float | None, kind: str) -> str:
    """Format a value of kind ``"share"`` or ``"number"``."""
    return show_share(value) if kind == "share" else show_number(value)


def look(tree: Any, path: Sequence[str]) -> Any:
    """Return the value of nested mappings at a path; None if a part of it is missing."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def show_change(change: Mapping[str, Any] | None, good: int, kind: str) -> dict[str, Any]:
    """Format a change with its paired interval, shares in percentage points.

    Args:
        change: ``value`` and ``interval``; None where it was not measured.
        good: sign of an improvement, 0 if no direction is better.
        kind: ``"share"`` or ``"number"``.

    Returns:
        ``text``, ``bounds`` (None without an interval), and ``kind``: ``good`` or ``bad`` where the interval leaves
        out zero, else ``neutral``.
    """
    value, interval = (None, None) if change is None else (change["value"], change["interval"])
    if value is None:
        return {"text": DASH, "bounds": None, "kind": "neutral"}
    text = _show_difference(value, kind) + ("\u202fpoints" if kind == "share" else "")
    if interval is None:
        return {"text": text, "bounds": None, "kind": "neutral"}
    clear = good != NEITHER and (interval[0] > 0 or interval[1] < 0)
    return {
        "text": text,
        "bounds": " to ".join(_show_difference(bound, kind) for bound in interval),
        "kind": "neutral" if not clear else "good" if value * good > 0 else "bad",
    }


def _show_difference(value: float, kind: str) -> str:
    return show_signed(100 * value, 1) if kind == "share" else show_signed(value)
