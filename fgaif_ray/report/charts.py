"""Small charts as SVG. In the report their colours come from the page's style sheet, so that they follow its light and
dark themes; the plots of experiments are made of the same parts and bring a style sheet of their own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup, escape

WIDTH, HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 12, 50
_INNER_WIDTH, _INNER_HEIGHT = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
MOST_POINTS: Final = 240
"""Points drawn of a series; longer ones are averaged in buckets."""
SMOOTHING: Final = 0.8
"""Weight of the past in the bold line; less for few points, behind which the line would lag."""
FRESH: Final = 15
"""Weight of the newest of n points, divided by n; at least ``1 - SMOOTHING``."""
DASHES: Final = ("", "8 4", "2 4", "12 4 2 4", "5 3", "1 3")
"""Dash patterns: lines differ by these and by the shape at their end, not by colour alone."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart; None where there is no value.

    Example: ``Series("existence", [0, 1, 2], [0.1, None, 0.4], "type-existence")``
    """

    name: str
    steps: Sequence[float]
    values: Sequence[float | None]
    color: str
    """Name of a colour of the style sheet: ``var(--<color>)``."""

    def points(self) -> list[tuple[float, float]]:
        """Return the finite points, averaged in buckets if there are many."""
        found = [
            (step, value)
            for step, value in zip(self.steps, self.values, strict=True)
            if value is not None and math.isfinite(value)
        ]
        size = math.ceil(len(found) / MOST_POINTS) or 1
        buckets = [found[start : start + size] for start in range(0, len(found), size)]
        return [(_mean([x for x, _ in bucket]), _mean([y for _, y in bucket])) for bucket in buckets]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers that span ``[low, high]``, about ``count`` of them.

    Raises:
        ValueError: ``low`` is above ``high``.
    """
    if low > high:
        raise ValueError(f"no ticks from {low} to {high}")
    if low == high:
        padding = abs(low) * 0.1 or 1.0
        low, high = low - padding, high + padding
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = 2 - math.floor(math.log10(step))
    return [round(index * step, digits) for index in range(first, last + 1)]


def format_tick(value: float) -> str:
    """Format a short label of an axis."""
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.6g}".replace("-", "\u2212")


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average, corrected for its start."""
    fresh = max(1 - SMOOTHING, min(1.0, FRESH / max(len(values), 1)))
    smoothed, average, weight = [], 0.0, 0.0
    for value in values:
        average = (1 - fresh) * average + fresh * value
        weight = (1 - fresh) * weight + fresh
        smoothed.append(average / weight)
    return smoothed


def line_chart(title: str, series: Sequence[Series], *, zero: bool = False, below: str = "step") -> Markup | None:
    """Draw lines over steps: the raw values pale, their moving average bold.

    Args:
        title: name for screen readers.
        series: the lines; one without a finite value is left out.
        zero: whether the axis includes zero.
        below: what the horizontal axis counts.

    Returns:
        An ``<svg>`` element, or None where no series has a value.
    """
    lines = [(index, one, points) for index, one in enumerate(series) if (points := one.points())]
    if not lines:
        return None
    xs = [x for _, _, points in lines for x, _ in points]
    ys = [y for _, _, points in lines for _, y in points] + ([0.0] if zero else [])
    low, high, ticks = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, nice_ticks(min(ys), max(ys))
    frame = Frame(Axis(low, high, _LEFT, WIDTH - _RIGHT), Axis(ticks[0], ticks[-1], HEIGHT - _BOTTOM, _TOP))
    steps = [tick for tick in nice_ticks(low, high, 5) if low <= tick <= high]
    parts = [*frame.rows(tick_words(ticks)), *frame.columns(tick_words(steps), lines=False), frame.below(below)]
    for index, one, points in lines:
        color = f"var(--{one.color})"
        bold = list(zip((x for x, _ in points), smooth([y for _, y in points]), strict=True))
        end_x, end_y = bold[-1]
        parts += [
            f'<path class="raw" style="stroke:{color}" d="{frame.path(points)}"/>',
            f'<path class="line" style="stroke:{color}" stroke-dasharray="{dash(index)}" d="{frame.path(bold)}"/>',
            marker(index, color, frame.x.place(end_x), frame.y.place(end_y)),
        ]
    parts += _tooltips(frame, {one.name: dict(points) for _, one, points in lines}, sorted(set(xs)))
    body = "".join(parts)
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{body}</svg>'
    )


def swatch(index: int, color: str) -> Markup:
    """Draw a sample of a chart's line number ``index`` for its legend."""
    style = f"var(--{color})"
    line = f'<line class="line" style="stroke:{style}" stroke-dasharray="{dash(index)}" x1="1" x2="29" y1="6" y2="6"/>'
    end = marker(index, style, 30, 6)
    return Markup(f'<svg class="swatch" viewBox="0 0 36 12" aria-hidden="true">{line}{end}</svg>')


def dash(index: int) -> str:
    """Return the ``stroke-dasharray`` of a chart's line number ``index``."""
    return DASHES[index % len(DASHES)] or "none"


def marker(index: int, color: str, x: float, y: float) -> str:
    """A disc, a square, a triangle or a diamond around a point."""
    match index % 4:
        case 0:
            return f'<circle style="fill:{color}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        case 1:
            shape = f"M{x - 4:.1f},{y - 4:.1f}h8v8h-8z"
        case 2:
            shape = f"M{x:.1f},{y - 5:.1f}l5,9h-10z"
        case _:
            shape = f"M{x:.1f},{y - 5:.1f}l5,5l-5,5l-5,-5z"
    return f'<path class="end" style="fill:{color}" d="{shape}"/>'


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction of a drawing: maps data to places."""

    low: float
    high: float
    start: float
    """Place of ``low``."""
    end: float
    """Place of ``high``."""

    def place(self, value: float) -> float:
        """Return the place of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True, slots=True)
class Frame:
    """A plot area. The style sheet of its page styles its parts by their classes: grid, zero, tick and label."""

    x: Axis
    y: Axis

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        """Return the path of a line through points of the data."""
        return "M" + "L".join(f"{self.x.place(x):.1f},{self.y.place(y):.1f}" for x, y in points)

    def rows(self, ticks: Mapping[float, str]) -> list[str]:
        """Draw horizontal lines with their words at the left."""
        parts = []
        for tick, words in ticks.items():
            y = self.y.place(tick)
            ends = f'x1="{self.x.start:.1f}" x2="{self.x.end:.1f}" y1="{y:.1f}" y2="{y:.1f}"'
            place = f'x="{self.x.start - 8:.1f}" y="{y + 4:.1f}" text-anchor="end"'
            parts += [
                f'<line class="{"zero" if tick == 0 else "grid"}" {ends}/>',
                f'<text class="tick" {place}>{escape(words)}</text>',
            ]
        return parts

    def columns(self, ticks: Mapping[float, str], *, lines: bool = True) -> list[str]:
        """Draw vertical lines with their words below, or the words alone."""
        parts = []
        for tick, words in ticks.items():
            x = self.x.place(tick)
            if lines:
                ends = f'x1="{x:.1f}" x2="{x:.1f}" y1="{self.y.end:.1f}" y2="{self.y.start:.1f}"'
                parts.append(f'<line class="grid" {ends}/>')
            place = f'x="{x:.1f}" y="{self.y.start + 20:.1f}" text-anchor="middle"'
            parts.append(f'<text class="tick" {place}>{escape(words)}</text>')
        return parts

    def below(self, words: str) -> str:
        """Draw the name of the horizontal axis."""
        place = f'x="{(self.x.start + self.x.end) / 2:.1f}" y="{self.y.start + 41:.1f}" text-anchor="middle"'
        return f'<text class="label" {place}>{escape(words)}</text>'

    def beside(self, words: str) -> str:
        """Draw the name of the vertical axis, read upwards."""
        middle = (self.y.start + self.y.end) / 2
        place = f'x="12" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 12 {middle:.1f})"'
        return f'<text class="label" {place}>{escape(words)}</text>'


def tick_words(ticks: Sequence[float]) -> dict[float, str]:
    """Return the words at the ticks of an axis."""
    return {tick: format_tick(tick) for tick in ticks}


def _tooltips(frame: Frame, values: Mapping[str, Mapping[float, float]], steps: Sequence[float]) -> list[str]:
    """Draw what a mouse finds: one narrow column per step, with all series in its tooltip."""
    width = _INNER_WIDTH / max(len(steps) - 1, 1)
    parts = []
    for step in steps:
        said = ", ".join(f"{name} {format_value(line[step])}" for name, line in values.items() if step in line)
        parts.append(
            f'<rect class="hover" x="{frame.x.place(step) - width / 2:.1f}" y="{_TOP}" width="{width:.1f}" '
            f'height="{_INNER_HEIGHT}"><title>step {format_tick(round(step, 1))}: {escape(said)}</title></rect>'
        )
    return parts


def format_value(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}".replace("-", "\u2212")
