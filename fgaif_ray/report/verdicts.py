"""Quality of verdicts: labels against the truth, reward models against labels, and the calibration of these."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from markupsafe import Markup, escape

from fgaif_ray.fact_types import colour_of
from fgaif_ray.records import CLASS_NAMES
from fgaif_ray.report.charts import Axis, Frame, format_value
from fgaif_ray.statistics.intervals import wilson_interval

_SIDE, _LEFT, _TOP, _BOTTOM, _RIGHT = 250, 54, 12, 46, 26
WIDTH, HEIGHT = _LEFT + _SIDE + _RIGHT, _TOP + _SIDE + _BOTTOM
_FRAME: Final = Frame(Axis(0.0, 1.0, _LEFT, _LEFT + _SIDE), Axis(0.0, 1.0, _TOP + _SIDE, _TOP))
_SMALLEST, _LARGEST = 3.0, 8.0


def cards(figures: Mapping[str, Mapping[str, Any] | None], types: Sequence[str]) -> list[dict[str, Any]]:
    """Build one card per fact type with metrics in the form of ``Agreement.to_dict``.

    A reward model that judges whole responses serves all types and gets one card.
    """
    found: list[dict[str, Any]] = []
    for kind in types:
        one = figures.get(kind)
        if one is None:
            continue
        if one.get("granularity") == "response":
            return [_card("whole response", "ink", one)]
        found.append(_card(kind, colour_of(kind), one))
    return found


def _card(name: str, colour: str, found: Mapping[str, Any]) -> dict[str, Any]:
    matrix = found["confusion"]
    raw, scaled = found.get("reliability"), found.get("reliability_scaled")
    return {
        "type": name,
        "color": colour,
        "unit": "responses" if found.get("granularity") == "response" else "segments",
        "balanced_accuracy": found["balanced_accuracy"],
        "accuracy": found["accuracy"],
        "count": found["count"],
        "auroc": (found.get("auroc") or {}).get("hallucinated_vs_consistent"),
        "calibration_errors": [found.get(f"expected_calibration_error{end}") for end in ("", "_scaled")],
        "likelihoods": [found.get(f"negative_log_likelihood{end}") for end in ("", "_scaled")],
        "temperature": found.get("temperature"),
        "diagram": None if not raw else reliability_chart(name, raw, scaled or ()),
        "epochs": len(found["curve"]) if "curve" in found else None,
        "seconds": found.get("seconds"),
        "rows": [
            {
                "name": title,
                "cells": [
                    {"count": value, "share": value / sum(matrix[row]) if sum(matrix[row]) else 0.0}
                    for value in matrix[row]
                ],
                "precision": found["precision"][title],
                "recall": found["recall"][title],
            }
            for row, title in enumerate(CLASS_NAMES)
        ],
    }


def reliability_chart(
    name: str, raw: Sequence[Mapping[str, float]], scaled: Sequence[Mapping[str, float]] = ()
) -> Markup:
    """Draw accuracy over confidence; on the diagonal a model is right as often as it is sure (Guo et al. 2017, fig. 1).

    Args:
        name: of the reward model, for screen readers.
        raw: ``{"count", "confidence", "accuracy"}`` per bin, as ``reliability_bins`` gives them.
        scaled: the same after temperature scaling.

    Returns:
        An ``<svg>`` element; the area of a point grows with its count, and its whisker is the 95 % interval of its
        accuracy.
    """
    said = "; ".join(
        f"{title}: " + ", ".join(f"sure {_percent(p['confidence'])}, right {_percent(p['accuracy'])}" for p in points)
        for title, points in (("as trained", raw), ("after temperature scaling", scaled))
        if points
    )
    x, y = _FRAME.x.place, _FRAME.y.place
    ticks = {tick: f"{tick:.0%}" for tick in (0.0, 0.25, 0.5, 0.75, 1.0)}
    parts = [
        *_FRAME.rows(ticks),
        *_FRAME.columns(ticks),
        f'<line class="diagonal" x1="{x(0)}" y1="{y(0)}" x2="{x(1)}" y2="{y(1)}"/>',
        _FRAME.below("how sure"),
        _FRAME.beside("how often right"),
    ]
    most = max(point["count"] for point in (*raw, *scaled))
    for kind, points in (("raw", raw), ("scaled", scaled)):
        for point in points:
            at, right = x(point["confidence"]), y(point["accuracy"])
            low, high = (y(bound) for bound in wilson_interval(point["accuracy"], point["count"]))
            parts.append(f'<line class="{kind}-whisker" x1="{at:.1f}" x2="{at:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
            size = _SMALLEST + (_LARGEST - _SMALLEST) * (point["count"] / most) ** 0.5
            title = (
                f"{round(point['count'])} verdicts: sure {_percent(point['confidence'])}, "
                f"right {_percent(point['accuracy'])}"
            )
            shape = (
                f'<circle class="raw-point" cx="{at:.1f}" cy="{right:.1f}" r="{size:.1f}">'
                if kind == "raw"
                else f'<rect class="scaled-point" x="{at - size * 0.8:.1f}" y="{right - size * 0.8:.1f}" '
                f'width="{1.6 * size:.1f}" height="{1.6 * size:.1f}">'
            )
            parts.append(f"{shape}<title>{title}</title></{'circle' if kind == 'raw' else 'rect'}>")
    label = escape(f"Reliability diagram of the reward model {name}. {said}")
    body = "".join(parts)
    return Markup(
        f'<svg class="reliability" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{body}</svg>'
    )


def _percent(value: float) -> str:
    return f"{format_value(100 * value)}\u202f%"


CLASS_SHORT: Final = dict(zip(CLASS_NAMES, ("absent", "consist.", "halluc."), strict=True))
"""Shorten names so that they fit above a narrow column."""
