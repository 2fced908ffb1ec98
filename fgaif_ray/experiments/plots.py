"""Plots of an experiment as SVG, drawn with matplotlib from ``results.json``.

The page embeds them as data URLs of images, so nothing inside an image can act on the page.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS: Final = ("#0b7285", "#d97706", "#8b5cf6", "#2f6fd0", "#c02b3c", "#117a4f", "#98a3b3")
_INK: Final = "#7a8699"
"""Readable on a light and on a dark page."""
_STYLE: Final[dict[Any, Any]] = {
    "svg.hashsalt": "fgaif",  # equal results give equal files
    "svg.fonttype": "path",
    "font.size": 9,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # dollar signs in a name are not math
}
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
    from matplotlib import rc_context

    variants = [variant for variant in results["variants"] if HALLUCINATION in variant["figures"]]
    if not variants:
        return []
    with rc_context(_STYLE):
        drawn = [("variants", "Hallucinated segments after alignment, by variant", _forest(variants))]
        if any(variant["family"] is not None for variant in variants):
            for name, metric, title in (
                ("rewards", "rewards_present.mean", "Balanced accuracy of rewards among facts"),
                ("hallucination", HALLUCINATION, "Hallucination"),
                ("coverage", "coverage", "Coverage of the truth"),
            ):
                curves = _curves(variants, metric, title)
                if curves is not None:
                    drawn.append((name, f"{title} over label noise", curves))
        elif any("coverage" in variant["figures"] for variant in variants):
            title = "Hallucination against coverage: down and to the right is better"
            drawn.append(("coverage", title, _scatter(variants)))
        return [Plot(name, title, _svg(figure)) for name, title, figure in drawn]


def _new(width: float, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(color=_INK, alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _error(entry: Mapping[str, Any], scale: float = 100) -> list[list[float]] | None:
    """Return ``[[down], [up]]`` of one interval, as matplotlib takes it."""
    if entry["interval"] is None:
        return None
    low, high = entry["interval"]
    return [[max(0.0, (entry["mean"] - low) * scale)], [max(0.0, (high - entry["mean"]) * scale)]]


def _forest(variants: Sequence[Mapping[str, Any]]) -> "Figure":
    figure, axes = _new(7, 1 + 0.32 * len(variants))
    for place, variant in enumerate(variants):
        entry = variant["figures"][HALLUCINATION]
        axes.errorbar(100 * entry["mean"], place, xerr=_error(entry), fmt="o", color=COLORS[0], capsize=3)
        single = [100 * value for value in entry["by_seed"].values()]
        if len(single) > 1:
            axes.plot(single, [place] * len(single), "|", color=COLORS[1], markersize=9)
        before = variant["figures"].get("hallucination.before")
        if before is not None:
            axes.plot(100 * before["mean"], place, "o", color=COLORS[6], fillstyle="none")
    axes.set_yticks(range(len(variants)), [variant["title"] for variant in variants])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("% of segments; circles: before alignment, ticks: single seeds")
    return figure


def _curves(variants: Sequence[Mapping[str, Any]], name: str, title: str) -> "Figure | None":
    """Lines over the level of noise, one per family; all of them start at the variant without."""
    start = [variant for variant in variants if variant["family"] is None and name in variant["figures"]]
    families = list(dict.fromkeys(variant["family"] for variant in variants if variant["family"] is not None))
    figure, axes = _new(5.4, 3.4)
    drawn = False
    for place, (color, family) in enumerate(zip(COLORS, families)):
        members = [variant for variant in variants if variant["family"] == family and name in variant["figures"]]
        points = sorted([*start, *members], key=lambda variant: variant["level"])
        if not members:
            continue
        drawn = True
        shift = _SHIFT * (place - (len(families) - 1) / 2)
        levels = [100 * point["level"] + shift if point["level"] else 0.0 for point in points]
        entries = [point["figures"][name] for point in points]
        axes.plot(levels, [100 * entry["mean"] for entry in entries], "o-", color=color, label=family, markersize=4)
        for level, entry in zip(levels, entries):
            axes.errorbar(level, 100 * entry["mean"], yerr=_error(entry), color=color, alpha=0.35, capsize=2)
    if not drawn:
        return None
    beside = "; intervals of one level side by side" if len(families) > 1 else ""
    axes.set_xlabel(f"labels flipped, %{beside}")
    axes.set_ylabel(f"{title}, %")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _scatter(variants: Sequence[Mapping[str, Any]]) -> "Figure":
    figure, axes = _new(5.4, 3.6)
    for place, variant in enumerate(variants):
        figures = variant["figures"]
        if "coverage" not in figures:
            continue
        x, y = figures["coverage"], figures[HALLUCINATION]
        axes.errorbar(
            100 * x["mean"],
            100 * y["mean"],
            xerr=_error(x),
            yerr=_error(y),
            fmt="o",
            color=COLORS[place % len(COLORS)],
            label=variant["title"],
            capsize=2,
        )
        if {"coverage.before", "hallucination.before"} <= figures.keys():
            before = [100 * figures[name]["mean"] for name in ("coverage.before", "hallucination.before")]
            axes.plot(*before, "o", color=COLORS[6], fillstyle="none", label="_nolegend_")
    axes.set_xlabel("coverage of the truth, %; circles: before alignment")
    axes.set_ylabel("hallucinated segments, %")
    axes.legend(frameon=False, fontsize=8)
    return figure
