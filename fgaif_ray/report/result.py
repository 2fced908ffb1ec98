"""The metrics before and after alignment: tiles, bars, the table, what got worse, and POPE."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fgaif_ray.evaluation import AFTER, BEFORE, GREEDY, POLICIES
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
_TILES: Final = (
    ReportFigure("Hallucinated segments", ("hallucination_rate", "overall"), LOWER_IS_BETTER, "share"),
    ReportFigure("Coverage of the truth", ("coverage",), HIGHER_IS_BETTER, "share"),
    ReportFigure("Facts per response", ("facts_per_response",), NEITHER, "number"),
    ReportFigure("POPE F1", ("pope", "f1"), HIGHER_IS_BETTER, "share"),
)
_BARS: Final = (
    (_RATES, "lower is better", GROUPS[_RATES]),
    ("Truth told, and repetition", "coverage: higher is better", (*GROUPS[_TOLD], GROUPS[_WELL][0])),
)


def tiles(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Build the tiles of the headline metrics; unmeasured ones are left out."""
    found = []
    for one in _TILES:
        before, after = (look(evaluation[which], one.path) for which in POLICIES)
        if before is None and after is None:
            continue
        found.append(
            {
                "name": one.name,
                "before": show(before, one.kind),
                "after": show(after, one.kind),
                "bounds": _bounds(look(evaluation[AFTER], ("intervals", *one.path)), one.kind),
                "change": show_change(before, after, one.good),
            }
        )
    return found


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
            before, after = (look(evaluation[which], one.path) for which in POLICIES)
            pair = [_bar(evaluation[which], one, which, ticks[-1]) for which in (BEFORE, AFTER)]
            rows.append({"name": one.name, "bars": pair, "change": show_change(before, after, one.good)})
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
    groups = []
    for group, figures in GROUPS.items():
        rows = []
        for one in figures:
            sampled = [_cell(evaluation[which], one) for which in POLICIES]
            greedy = [_cell(evaluation[which].get(GREEDY, {}), one) for which in POLICIES]
            if any(cell["value"] is not None for cell in (*sampled, *greedy)):
                rows.append(
                    {
                        "name": one.name,
                        "sides": [
                            {"cells": cells, "change": show_change(cells[0]["value"], cells[1]["value"], one.good)}
                            for cells in (sampled, greedy)
                        ],
                    }
                )
        if rows:
            groups.append({"name": group, "rows": rows})
    return groups


def worse(evaluation: Mapping[str, Any]) -> list[str]:
    """List what alignment has clearly made worse: the 95 % intervals before and after do not overlap."""
    found = []
    for group, figures in GROUPS.items():
        for one in figures:
            for how, path in (("sampled", ()), (GREEDY, (GREEDY,))):
                before, after = (look(evaluation[which], path) or {} for which in POLICIES)
                intervals = _interval(before, one), _interval(after, one)
                if one.good == NEITHER or intervals[0] is None or intervals[1] is None:
                    continue
                gap = intervals[1][0] - intervals[0][1] if one.good < 0 else intervals[0][0] - intervals[1][1]
                if gap > 0:
                    values = [show(look(side, one.path), one.kind) for side in (before, after)]
                    name = one.name if group not in (_RATES, _TOLD) else f"{group.lower()}: {one.name}"
                    found.append(f"{name}, {how}: {values[0]} \u2192 {values[1]}")
    return found


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
                    sides[0][figure], sides[1][figure], NEITHER if figure == "yes_ratio" else HIGHER_IS_BETTER
                ),
            }
            for figure in POPE_FIGURES
        ]
        rows.append({"name": name, "questions": sides[0].get("questions"), "cells": cells})
    return rows


def _cell(figures: Mapping[str, Any], one: ReportFigure) -> dict[str, Any]:
    value = look(figures, one.path)
    return {"value": value, "text": show(value, one.kind), "bounds": _bounds(_interval(figures, one), one.kind)}


def _bounds(interval: Sequence[float] | None, kind: str) -> str | None:
    """Format an interval with its unit once, e.g. ``"16.0 \u2013 18.9 %"``."""
    if interval is None:
        return None
    low = show_number(100 * interval[0], 1) if kind == "share" else show_number(interval[0])
    return f"{low}\u202f{DASH}\u202f{show(interval[1], kind)}"
