"""Plots of an experiment as SVG, drawn from ``results.json`` with the parts of the report's charts.

The page embeds them as data URLs of images, so nothing inside an image can act on the page.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import escape

from fgaif_ray.report.charts import Axis, Frame, dash, marker, nice_ticks, tick_words

COLORS: Final = ("#0b7285", "#d97706", "#8b5cf6", "#2f6fd0", "#c02b3c", "#117a4f", "#98a3b3")
"""Readable on a light and on a dark page, as is the grey of the text: an image does not know which one it is on."""
_BEFORE: Final = COLORS[6]
_STYLE: Final = (
    'text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","DejaVu Sans",sans-serif;fill:#7a8699}'
    ".grid{stroke:#7a8699;stroke-opacity:.22}.zero{stroke:#7a8699;stroke-opacity:.7}"
    ".line{fill:none;stroke-width:2}.whisker{fill:none;stroke-width:1.4}.pale{opacity:.45}"
)
_LETTER: Final = 6.9
"""Rough width of a letter."""
_LONGEST: Final = 44
"""Letters of a name that are shown."""
_TOP, _BOTTOM, _LEFT, _RIGHT, _ROW = 14.0, 52.0, 62.0, 24.0, 32.0
_WIDTH, _HEIGHT = 440.0, 280.0
"""Size of a plot area."""
_NARROWEST: Final = 300.0
"""Width of a plot area beside long names."""
HALLUCINATION: Final = "hallucination.overall"
_SHIFT: Final = 0.6
"""Percentage points of noise between families at one level, whose intervals would hide each other."""


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot of an experiment."""

    name: str
    """Name of its file, without the ending."""
    title: str
    """Its title."""
    svg: bytes

    @property
    def url(self) -> str:
        """The plot as a data URL."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode()


def draw_plots(results: Mapping[str, Any]) -> list[Plot]:
    """Draw the plots of an experiment; none before the first run is done.

    Args:
        results: what ``build_results`` returned.
    """
    variants = [variant for variant in results["variants"] if HALLUCINATION in variant["figures"]]
    if not variants:
        return []
    title = "Hallucinated segments after alignment, by variant"
    plots = [Plot("variants", title, _forest(variants, title))]
    if any(variant["family"] is not None for variant in variants):
        for name, metric, title in (
            ("rewards", "rewards_present.mean", "Balanced accuracy of rewards among facts"),
            ("hallucination", HALLUCINATION, "Hallucination"),
            ("coverage", "coverage", "Coverage of the truth"),
        ):
            curves = _curves(variants, metric, title)
            if curves is not None:
                plots.append(Plot(name, f"{title} over label noise", curves))
    elif any("coverage" in variant["figures"] for variant in variants):
        title = "Hallucination against coverage: down and to the right is better"
        plots.append(Plot("coverage", title, _scatter(variants, title)))
    return plots


def _forest(variants: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """Draw a row for each variant: mean and interval, single seeds, and the model before alignment."""
    left = _LETTER * max(len(_short(variant["title"])) for variant in variants) + 18
    right, bottom = max(_LEFT + _WIDTH, left + _NARROWEST), _TOP + _ROW * len(variants)
    shown = [value for variant in variants for value in _bounds(variant["figures"][HALLUCINATION])]
    shown += [value for variant in variants for value in _singles(variant["figures"][HALLUCINATION])]
    shown += [100 * one["mean"] for variant in variants if (one := variant["figures"].get("hallucination.before"))]
    ticks = nice_ticks(0.0, max(*shown, 1.0), 6)
    upright = Axis(len(variants) + 0.5, 0.5, bottom, _TOP)  # the first variant on top
    frame = Frame(Axis(0.0, ticks[-1], left, right), upright)
    parts = [
        *frame.columns(tick_words(ticks)),
        *frame.rows({row: _short(variant["title"]) for row, variant in enumerate(variants, start=1)}),
        frame.below("% of segments; circles: before alignment, ticks: seeds"),
    ]
    for row, variant in enumerate(variants, start=1):
        entry, y = variant["figures"][HALLUCINATION], frame.y.place(row)
        before, singles = variant["figures"].get("hallucination.before"), _singles(entry)
        if before is not None:
            parts.append(_circle(frame.x.place(100 * before["mean"]), y))
        parts.append(_across(frame, entry, y, COLORS[0]))
        parts += [
            f'<path class="line" stroke="{COLORS[1]}" d="M{frame.x.place(value):.1f},{y - 6:.1f}v12"/>'
            for value in (singles if len(singles) > 1 else [])
        ]
        parts.append(marker(0, COLORS[0], frame.x.place(100 * entry["mean"]), y))
    return _document(right + _RIGHT, bottom + _BOTTOM, title, parts)


def _curves(variants: Sequence[Mapping[str, Any]], name: str, title: str) -> bytes | None:
    """Draw lines over the level of noise, one per family; all of them start at the variant without."""
    start = [variant for variant in variants if variant["family"] is None and name in variant["figures"]]
    families = list(dict.fromkeys(variant["family"] for variant in variants if variant["family"] is not None))
    lines: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    for place, family in enumerate(families):
        members = [variant for variant in variants if variant["family"] == family and name in variant["figures"]]
        ordered = sorted([*start, *members], key=lambda variant: variant["level"])
        shift = _SHIFT * (place - (len(families) - 1) / 2)
        if members:
            lines[family] = [
                (100 * point["level"] + shift if point["level"] else 0.0, point["figures"][name]) for point in ordered
            ]
    if not lines:
        return None
    levels = [level for points in lines.values() for level, _ in points]
    frame, parts = _area(levels, [value for points in lines.values() for _, one in points for value in _bounds(one)])
    beside = "; intervals of one level side by side" if len(families) > 1 else ""
    parts += [frame.below(f"labels flipped, %{beside}"), frame.beside(f"{title}, %")]
    for place, points in enumerate(lines.values()):
        color = COLORS[place % len(COLORS)]
        means = [(level, 100 * entry["mean"]) for level, entry in points]
        parts += [f'<g class="pale">{_upright(frame, entry, frame.x.place(x), color)}</g>' for x, entry in points]
        parts.append(f'<path class="line" stroke="{color}" stroke-dasharray="{dash(place)}" d="{frame.path(means)}"/>')
        parts += [marker(place, color, frame.x.place(x), frame.y.place(y)) for x, y in means]
    return _with_legend(frame, f"{title} over label noise", parts, list(lines))


def _scatter(variants: Sequence[Mapping[str, Any]], title: str) -> bytes:
    variants = [variant for variant in variants if "coverage" in variant["figures"]]
    entries = [(variant["figures"]["coverage"], variant["figures"][HALLUCINATION]) for variant in variants]
    before = [
        (100 * variant["figures"]["coverage.before"]["mean"], 100 * variant["figures"]["hallucination.before"]["mean"])
        for variant in variants
        if {"coverage.before", "hallucination.before"} <= variant["figures"].keys()
    ]
    frame, parts = _area(
        [value for x, _ in entries for value in _bounds(x)] + [x for x, _ in before],
        [value for _, y in entries for value in _bounds(y)] + [y for _, y in before],
    )
    parts += [
        frame.below("coverage of the truth, %; circles: before alignment"),
        frame.beside("hallucinated segments, %"),
        *(_circle(frame.x.place(x), frame.y.place(y)) for x, y in before),
    ]
    for place, (across, upright) in enumerate(entries):
        color = COLORS[place % len(COLORS)]
        x, y = frame.x.place(100 * across["mean"]), frame.y.place(100 * upright["mean"])
        parts += [_across(frame, across, y, color), _upright(frame, upright, x, color), marker(place, color, x, y)]
    return _with_legend(frame, title, parts, [variant["title"] for variant in variants])


def _area(xs: Sequence[float], ys: Sequence[float]) -> tuple[Frame, list[str]]:
    """Return a plot area around points of the data, and its grid."""
    across, upright = nice_ticks(min(xs), max(xs), 6), nice_ticks(min(ys), max(ys), 5)
    frame = Frame(
        Axis(across[0], across[-1], _LEFT, _LEFT + _WIDTH), Axis(upright[0], upright[-1], _TOP + _HEIGHT, _TOP)
    )
    return frame, [*frame.columns(tick_words(across)), *frame.rows(tick_words(upright))]


def _with_legend(frame: Frame, title: str, parts: list[str], names: Sequence[str]) -> bytes:
    """Return the drawing with the names of its lines or points below."""
    x, y = frame.x.start, frame.y.start + 68
    for place, name in enumerate(names):
        width = _LETTER * len(_short(name)) + 34
        if x > frame.x.start and x + width > frame.x.end:
            x, y = frame.x.start, y + 20
        parts.append(marker(place, COLORS[place % len(COLORS)], x, y))
        parts.append(f'<text x="{x + 11:.1f}" y="{y + 4:.1f}">{escape(_short(name))}</text>')
        x += width
    return _document(frame.x.end + _RIGHT, y + 14, title, parts)


def _document(width: float, height: float, title: str, parts: Sequence[str]) -> bytes:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
    head += f'width="{width:.0f}" height="{height:.0f}" role="img"><title>{escape(title)}</title>'
    return f"{head}<style>{_STYLE}</style>{''.join(parts)}</svg>\n".encode()


def _bounds(entry: Mapping[str, Any]) -> tuple[float, float]:
    """Return from where to where a metric is drawn, in percent."""
    low, high = entry["interval"] or (entry["mean"], entry["mean"])
    return 100 * min(low, entry["mean"]), 100 * max(high, entry["mean"])


def _singles(entry: Mapping[str, Any]) -> list[float]:
    return [100 * value for value in entry["by_seed"].values()]


def _across(frame: Frame, entry: Mapping[str, Any], y: float, color: str) -> str:
    """Draw the interval of a metric on the horizontal axis; nothing where there is none."""
    if entry["interval"] is None:
        return ""
    low, high = map(frame.x.place, _bounds(entry))
    caps = f"M{low:.1f},{y - 4:.1f}v8M{low:.1f},{y:.1f}H{high:.1f}m0,-4v8"
    return f'<path class="whisker" stroke="{color}" d="{caps}"/>'


def _upright(frame: Frame, entry: Mapping[str, Any], x: float, color: str) -> str:
    """Draw the interval of a metric on the vertical axis; nothing where there is none."""
    if entry["interval"] is None:
        return ""
    low, high = map(frame.y.place, _bounds(entry))
    caps = f"M{x - 4:.1f},{low:.1f}h8M{x:.1f},{low:.1f}V{high:.1f}m-4,0h8"
    return f'<path class="whisker" stroke="{color}" d="{caps}"/>'


def _circle(x: float, y: float) -> str:
    """Draw a metric from before alignment."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="none" stroke="{_BEFORE}" stroke-width="1.5"/>'


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "\u2026"
