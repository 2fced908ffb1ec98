"""Small charts as inline SVG; colours come from the page's style sheet, so they follow its light and dark themes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup, escape

WIDTH, HEIGHT = 380, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 10, 26
_INNER_WIDTH, _INNER_HEIGHT = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
MOST_POINTS: Final = 240
"""Points drawn of a series; longer ones are averaged in buckets."""
SMOOTHING: Final = 0.8
"""Weight of the past in the bold line."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart; None where there is no figure.

    Example: ``Series("existence", [0, 1, 2], [0.1, None, 0.4], "existence")``
    """

    name: str
    steps: Sequence[float]
    values: Sequence[float | None]
    color: str
    """Name of a colour of the style sheet: ``var(--<color>)``."""

    def points(self) -> list[tuple[float, float]]:
        """The finite points, averaged in buckets where there are many."""
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
    """Round numbers that span ``[low, high]``, about ``count`` of them.

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
    """A short label of an axis."""
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.6g}".replace("-", "\u2212")


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average, corrected for its start."""
    smoothed, average, weight = [], 0.0, 0.0
    for value in values:
        average = SMOOTHING * average + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        smoothed.append(average / weight)
    return smoothed


def line_chart(title: str, series: Sequence[Series], *, zero: bool = False) -> Markup | None:
    """Lines over steps: the raw figures pale, their moving average bold.

    Args:
        title: name for screen readers.
        series: the lines; one without a finite value is left out.
        zero: whether the axis includes zero.

    Returns:
        An ``<svg>`` element, or None where no series has a value.
    """
    lines = [(one, points) for one in series if (points := one.points())]
    if not lines:
        return None
    xs = [x for _, points in lines for x, _ in points]
    ys = [y for _, points in lines for _, y in points] + ([0.0] if zero else [])
    frame = _Frame(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, nice_ticks(min(ys), max(ys)))
    parts = frame.axes()
    for one, points in lines:
        color = f"var(--{one.color})"
        bold = list(zip((x for x, _ in points), smooth([y for _, y in points]), strict=True))
        end_x, end_y = bold[-1]
        parts += [
            f'<path class="raw" style="stroke:{color}" d="{frame.path(points)}"/>',
            f'<path class="line" style="stroke:{color}" d="{frame.path(bold)}"/>',
            f'<circle style="fill:{color}" cx="{frame.x(end_x):.1f}" cy="{frame.y(end_y):.1f}" r="3"/>',
        ]
    parts += frame.columns({one.name: dict(points) for one, points in lines}, sorted(set(xs)))
    body = "".join(parts)
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{body}</svg>'
    )


@dataclass(frozen=True, slots=True)
class _Frame:
    """The plot area: from data to places in the drawing."""

    low: float
    high: float
    ticks: list[float]

    def x(self, step: float) -> float:
        return _LEFT + (step - self.low) / (self.high - self.low) * _INNER_WIDTH

    def y(self, value: float) -> float:
        return _TOP + (self.ticks[-1] - value) / (self.ticks[-1] - self.ticks[0]) * _INNER_HEIGHT

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)

    def axes(self) -> list[str]:
        parts = []
        for tick in self.ticks:
            y = self.y(tick)
            kind = "zero" if tick == 0 else "grid"
            parts += [
                f'<line class="{kind}" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>',
                f'<text class="tick" x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{format_tick(tick)}</text>',
            ]
        below = f'y="{HEIGHT - 8}" text-anchor="middle"'
        parts += [
            f'<text class="tick" x="{self.x(tick):.1f}" {below}>{format_tick(tick)}</text>'
            for tick in nice_ticks(self.low, self.high, 5)
            if self.low <= tick <= self.high
        ]
        return parts

    def columns(self, values: Mapping[str, Mapping[float, float]], steps: Sequence[float]) -> list[str]:
        """What a mouse finds: one narrow column per step, all series in its tooltip."""
        width = _INNER_WIDTH / max(len(steps) - 1, 1)
        parts = []
        for step in steps:
            said = ", ".join(f"{name} {format_value(line[step])}" for name, line in values.items() if step in line)
            parts.append(
                f'<rect class="hover" x="{self.x(step) - width / 2:.1f}" y="{_TOP}" width="{width:.1f}" '
                f'height="{_INNER_HEIGHT}"><title>step {format_tick(round(step, 1))}: {escape(said)}</title></rect>'
            )
        return parts


def format_value(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}".replace("-", "\u2212")


@dataclass(frozen=True, slots=True)
class Mark:
    """A value with its interval, one row of an interval chart."""

    value: float | None
    interval: Sequence[float] | None
    color: str


def interval_chart(marks: Sequence[Mark], high: float) -> Markup:
    """Dots with whiskers on a common scale from 0 to ``high``, one below the other.

    Args:
        marks: rows from top to bottom; one without a value is left empty.
        high: right end of the scale; positive.

    Raises:
        ValueError: ``high`` is not positive.
    """
    if not high > 0:
        raise ValueError(f"the scale must end above 0, not at {high}")
    width, row = 160, 9
    height = row * len(marks) + 4

    def place(value: float) -> float:
        return 4 + min(max(value / high, 0.0), 1.0) * (width - 8)

    parts = [f'<line class="zero" x1="4" x2="4" y1="0" y2="{height}"/>']
    for index, mark in enumerate(marks):
        y = 2 + row * (index + 0.5)
        color = f"var(--{mark.color})"
        if mark.value is None:
            continue
        parts.append(
            f'<line class="bar" style="stroke:{color}" x1="4" x2="{place(mark.value):.1f}" y1="{y}" y2="{y}"/>'
        )
        if mark.interval is not None:
            low, up = (place(bound) for bound in mark.interval)
            parts.append(
                f'<line class="whisker" style="stroke:{color}" x1="{low:.1f}" x2="{up:.1f}" y1="{y}" y2="{y}"/>'
            )
        parts.append(f'<circle style="fill:{color}" cx="{place(mark.value):.1f}" cy="{y}" r="3.2"/>')
    return Markup(f'<svg class="interval" viewBox="0 0 {width} {height}" aria-hidden="true">{"".join(parts)}</svg>')
