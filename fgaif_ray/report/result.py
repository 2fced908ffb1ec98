"""The metrics before and after alignment: the opening table, what got worse, bars, all metrics, and POPE."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fgaif_ray.evaluation import AFTER, BEFORE, GREEDY, POLICIES, POPE, SAMPLED
from fgaif_ray.evaluation.pope import FIGURES as POPE_FIGURES
from fgaif_ray.evaluation.pope import STRATEGIES
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.report.charts import format_tick, nice_ticks
from fgaif_ray.report.formats import (
    DASH,
    HIGHER_IS_BETTER,
    LOWER_IS_BETTER,
    NEITHER,
    look,
    show,
    show_change,
    show_number,
    show_share,
)


@dataclass(frozen=True, slots=True)
class ReportFigure:
    """A row of the table.

    Example: ``ReportFigure("overall", ("hallucination_rate", "overall"), LOWER_IS_BETTER, "share")``
    """

    name: str
    path: tuple[str, ...]
    good: int
    """Sign of an improvement."""
    kind: str
    """``"share"`` or ``"number"``."""


_RATES, _TOLD, _MUCH, _WELL = (
    "Hallucinated segments",
    "Truth that is told",
    "How much is said",
    "How well it is said",
)
GROUPS: Final = {
    _RATES: (
        *(
            ReportFigure(kind, ("hallucination_rate", kind), LOWER_IS_BETTER, "share")
            for kind in ("overall", *FACT_TYPES)  # those that the truth of the embedded world knows
        ),
    ),
    _TOLD: (
        ReportFigure("coverage", ("coverage",), HIGHER_IS_BETTER, "share"),
        ReportFigure("objects", ("coverage_objects",), HIGHER_IS_BETTER, "share"),
        ReportFigure("attributes", ("coverage_attributes",), HIGHER_IS_BETTER, "share"),
    ),
    _MUCH: (
        ReportFigure("facts per response", ("facts_per_response",), NEITHER, "number"),
        *(ReportFigure(f"of them {kind}", (f"{kind}_per_response",), NEITHER, "number") for kind in FACT_TYPES),
        ReportFigure("words per response", ("words_per_response",), NEITHER, "number"),
    ),
    _WELL: (
        ReportFigure("repeated statements", ("repetition",), LOWER_IS_BETTER, "share"),
        ReportFigure("segments without a statement", ("unreadable",), LOWER_IS_BETTER, "share"),
        ReportFigure("responses cut at the limit", ("unfinished",), LOWER_IS_BETTER, "share"),
    ),
}
_HEADLINES: Final = (
    ReportFigure("Hallucinated segments", ("hallucination_rate", "overall"), LOWER_IS_BETTER, "share"),
    *(
        ReportFigure(f"hallucinated, {kind}", ("hallucination_rate", kind), LOWER_IS_BETTER, "share")
        for kind in FACT_TYPES
    ),
    ReportFigure("Coverage of the truth", ("coverage",), HIGHER_IS_BETTER, "share"),
    ReportFigure("Segments without a statement", ("unreadable",), LOWER_IS_BETTER, "share"),
    ReportFigure("Words per response", ("words_per_response",), NEITHER, "number"),
)
_TASKS: Final = ((GREEDY, (GREEDY,)), (SAMPLED, ()))
"""How responses are decoded, and where a policy's metrics of that are; greedy first, as people decode."""
_BARS: Final = (
    (_RATES, "lower is better", GROUPS[_RATES]),
    ("Truth told, and repetition", "coverage: higher is better", (*GROUPS[_TOLD], GROUPS[_WELL][0])),
)


def headlines(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Build the rows of the opening table, greedy beside sampled; unmeasured metrics are left out."""
    return _rows(evaluation, _HEADLINES)


def has_changes(evaluation: Mapping[str, Any]) -> bool:
    """Whether the evaluation has measured changes with intervals; those of older versions have not."""
    return "changes" in evaluation


def bars(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Build metrics drawn as pairs of bars with whiskers, lengths in percent of the scale."""
    drawn = []
    for title, hint, group in _BARS:
        known = [one for one in group if all(look(evaluation[which], one.path) is not None for which in POLICIES)]
        if not known:
            continue
        ends = [
            end
            for one in known
            for which in POLICIES
            for end in (look(evaluation[which], one.path), *(_interval(evaluation[which], one) or ()))
        ]
        ticks = nice_ticks(0.0, max(*ends, 1e-3))
        rows = []
        for one in known:
            pair = [_bar(evaluation[which], one, which, ticks[-1]) for which in (BEFORE, AFTER)]
            rows.append({"name": one.name, "bars": pair})
        drawn.append(
            {
                "title": title,
                "hint": hint,
                "ticks": [
                    {"at": 100 * tick / ticks[-1], "text": f"{format_tick(100 * tick)}\u202f%"} for tick in ticks
                ],
                "rows": rows,
            }
        )
    return drawn


def _interval(figures: Mapping[str, Any], one: ReportFigure) -> Sequence[float] | None:
    found: Sequence[float] | None = look(figures, ("intervals", *one.path))
    return found


def _bar(figures: Mapping[str, Any], one: ReportFigure, which: str, top: float) -> dict[str, Any]:
    value, interval = look(figures, one.path), _interval(figures, one)
    return {
        "which": which,
        "width": 100 * value / top,
        "whisker": None if interval is None else (100 * interval[0] / top, 100 * (interval[1] - interval[0]) / top),
        "text": show_share(value),
    }


def table(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Build the rows of the table by group; unmeasured metrics are left out."""
    groups: list[dict[str, Any]] = [
        {"name": group, "rows": _rows(evaluation, figures)} for group, figures in GROUPS.items()
    ]
    return [group for group in groups if group["rows"]]


def _rows(evaluation: Mapping[str, Any], figures: Sequence[ReportFigure]) -> list[dict[str, Any]]:
    """Build a row for each metric that is measured, with a side for each way of decoding."""
    rows = []
    for one in figures:
        sides: list[dict[str, Any]] = [
            {
                "cells": [_cell(look(evaluation[which], path) or {}, one) for which in POLICIES],
                "change": show_change(_change(evaluation, task, one), one.good, one.kind),
            }
            for task, path in _TASKS
        ]
        if any(cell["value"] is not None for side in sides for cell in side["cells"]):
            rows.append({"name": one.name, "sides": sides})
    return rows


def _change(evaluation: Mapping[str, Any], task: str, one: ReportFigure) -> Mapping[str, Any] | None:
    """Return a change and its interval; of an older evaluation, the difference without one."""
    if has_changes(evaluation):
        found: Mapping[str, Any] | None = look(evaluation, ("changes", task, *one.path))
        return found
    before, after = (look(evaluation[which], (*dict(_TASKS)[task], *one.path)) for which in POLICIES)
    return None if before is None or after is None else {"value": after - before, "interval": None}


def worse(evaluation: Mapping[str, Any]) -> list[str]:
    """List what alignment has clearly made worse: the 95 % interval of the change leaves out zero.

    An older evaluation has no such intervals; there, those before and after must not overlap.
    """
    found = []
    for group, figures in GROUPS.items():
        for one in figures:
            for task, path in _TASKS:
                if not _got_worse(evaluation, one, task, path):
                    continue
                values = [show(look(evaluation[which], (*path, *one.path)), one.kind) for which in POLICIES]
                name = one.name if group not in (_RATES, _TOLD) else f"{group.lower()}: {one.name}"
                change = show_change(_change(evaluation, task, one), one.good, one.kind)
                bounds = "" if change["bounds"] is None else f" (95\u202f%: {change['bounds']})"
                found.append(f"{name}, {task}: {values[0]} \u2192 {values[1]}, {change['text']}{bounds}")
    return found


def _got_worse(evaluation: Mapping[str, Any], one: ReportFigure, task: str, path: tuple[str, ...]) -> bool:
    if one.good == NEITHER:
        return False
    if has_changes(evaluation):
        return bool(show_change(_change(evaluation, task, one), one.good, one.kind)["kind"] == "bad")
    before, after = (_interval(look(evaluation[which], path) or {}, one) for which in POLICIES)
    if before is None or after is None:
        return False
    return (after[0] > before[1]) if one.good < 0 else (before[0] > after[1])


def pope(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Build the rows of POPE's table; none if it was not asked."""
    if look(evaluation, (AFTER, "pope")) is None:
        return []
    rows = []
    for name in ("mean", *STRATEGIES):
        sides = [
            evaluation[which]["pope"] if name == "mean" else evaluation[which]["pope"]["splits"][name]
            for which in (BEFORE, AFTER)
        ]
        cells = [
            {
                "before": show_share(sides[0][figure]),
                "after": show_share(sides[1][figure]),
                "change": show_change(
                    _pope_change(evaluation, name, figure, sides),
                    NEITHER if figure == "yes_ratio" else HIGHER_IS_BETTER,
                    "share",
                ),
            }
            for figure in POPE_FIGURES
        ]
        rows.append({"name": name, "questions": sides[0].get("questions"), "cells": cells})
    return rows


def _pope_change(
    evaluation: Mapping[str, Any], name: str, figure: str, sides: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    if has_changes(evaluation):
        path = ("changes", POPE, figure) if name == "mean" else ("changes", POPE, "splits", name, figure)
        found: Mapping[str, Any] | None = look(evaluation, path)
        return found
    before, after = (side[figure] for side in sides)
    return None if before is None or after is None else {"value": after - before, "interval": None}


def _cell(figures: Mapping[str, Any], one: ReportFigure) -> dict[str, Any]:
    value = look(figures, one.path)
    return {"value": value, "text": show(value, one.kind), "bounds": _bounds(_interval(figures, one), one.kind)}


def _bounds(interval: Sequence[float] | None, kind: str) -> str | None:
    """Format an interval with its unit once, e.g. ``"16.0 \u2013 18.9 %"``."""
    if interval is None:
        return None
    low = show_number(100 * interval[0], 1) if kind == "share" else show_number(interval[0])
    return f"{low}\u202f{DASH}\u202f{show(interval[1], kind)}"
