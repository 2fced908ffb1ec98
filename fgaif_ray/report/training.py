"""Training curves of an alignment, from its ``metrics.jsonl``."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from fgaif_ray import storage
from fgaif_ray.fact_types import colour_of
from fgaif_ray.report.charts import Series, format_value, line_chart, swatch

METRICS_FILE: Final = "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class Panel:
    """The content of one chart.

    Example: ``Panel("Length", "tokens", (("mean", "response/length", "after"),))``; a line is its name, its key and its
    colour in the style sheet.
    """

    title: str
    unit: str
    lines: tuple[tuple[str, str, str], ...]
    floor: float | None = None
    """Lower limit of the drawing; values below are drawn there."""
    minor: bool = True
    """Whether it is about the health of the optimisation, not about what is learnt."""


_HELD_OUT: Final = (
    Panel(
        "Held-out images, greedy, by the truth",
        "share",
        (
            ("hallucinated segments", "evaluation/truth/hallucination/overall", "before"),
            ("coverage", "evaluation/truth/coverage", "after"),
            ("repeated statements", "evaluation/truth/repeated_share", "ink"),
        ),
        minor=False,
    ),
    Panel(
        "Held-out images, greedy, by the reward models",
        "share of segments; of responses: unfinished",
        (
            ("hallucinated", "evaluation/hallucination/overall", "before"),
            ("repeated", "evaluation/response/repeated_share", "ink"),
            ("unfinished", "evaluation/response/unfinished_share", "after"),
        ),
        minor=False,
    ),
    Panel(
        "Held-out images, greedy: facts per response",
        "by the reward models",
        (("facts", "evaluation/facts/per_response", "after"),),
        minor=False,
    ),
)
"""The first charts, where ``align.evaluate_every`` has asked for evaluations while training."""
_PANELS: Final = (
    Panel("Facts per response", "by the reward models", (("facts", "facts/per_response", "after"),), minor=False),
    Panel("KL to the backbone", "nats per response", (("KL", "kl/per_response", "after"),), minor=False),
    Panel("Loss of preferences", "per pair; 0.69 before learning", (("loss", "dpo/loss", "after"),), minor=False),
    Panel("Pairs told apart", "share of pairs", (("right", "dpo/told_apart", "after"),), minor=False),
    Panel(
        "Implicit reward",
        "beta times nats",
        (("chosen", "dpo/chosen_reward", "after"), ("rejected", "dpo/rejected_reward", "before")),
        minor=False,
    ),
    Panel("Length", "tokens", (("mean", "response/length", "after"),)),
    Panel("Stopped by themselves", "share of responses", (("stopped", "response/stopped_share", "after"),)),
    Panel("Entropy", "nats per token", (("entropy", "policy/entropy", "after"),)),
    Panel(
        "Critic: explained variance",
        "1 is perfect; drawn from \u22121",
        (("explained", "critic/explained_variance_before", "after"),),
        floor=-1.0,
    ),
    Panel(
        "Clipped updates",
        "share of tokens",
        (("policy", "policy/clip_share", "after"), ("critic", "critic/clip_share", "before")),
    ),
    Panel(
        "Engine against learner",
        "mean difference of log-probabilities, nats",
        (("mean", "rollout/log_prob_difference", "after"),),
    ),
    Panel(
        "Time per step",
        "seconds",
        (
            ("all", "timing/step", "ink"),
            ("rollout", "timing/rollout", "rollout"),
            ("update", "timing/update", "update"),
            ("reward", "timing/reward", "reward"),
            ("reference", "timing/reference", "before"),
            ("sync", "timing/sync", "after"),
        ),
    ),
)


def panels(types: Sequence[str]) -> tuple[Panel, ...]:
    """The charts of a run with these fact types."""
    rewards = [(kind, f"reward/{kind}", colour_of(kind)) for kind in types]
    hallucinated = tuple((kind, f"hallucination/{kind}", colour_of(kind)) for kind in types)
    return (
        *_HELD_OUT,
        Panel("Reward", "per response", (*rewards, ("total", "reward/total", "ink")), minor=False),
        Panel("Hallucination, by the reward models", "share of segments", hallucinated, minor=False),
        *_PANELS,
    )


def read_metrics(folder: str) -> list[dict[str, Any]]:
    """Read the lines of ``metrics.jsonl`` in a folder; none if there is no file. That of step 0 is an evaluation."""
    uri = storage.join(folder, METRICS_FILE)
    if not storage.exists(uri):
        return []
    return [json.loads(line) for line in storage.read_bytes(uri).decode().splitlines() if line.strip()]


def training_charts(folder: str, types: Sequence[str]) -> list[dict[str, Any]]:
    """Draw the charts of the ``policy/`` folder: ``{title, unit, minor, chart, legend}``; none without a value."""
    lines = read_metrics(folder)
    charts = []
    for panel in panels(types):
        series = [
            Series(name, [line["step"] for line in lines], [_cut(line.get(key), panel.floor) for line in lines], color)
            for name, key, color in panel.lines
        ]
        legend = _legend(series)
        said = "; ".join(f"{line['name']} {line['ends']}" for line in legend)
        chart = line_chart(f"{panel.title}, {panel.unit}, over steps: {said}", series, zero=True)
        if chart is not None:
            charts.append(
                {"title": panel.title, "unit": panel.unit, "minor": panel.minor, "chart": chart, "legend": legend}
            )
    return charts


def _cut(value: float | None, floor: float | None) -> float | None:
    return value if value is None or floor is None else max(value, floor)


def _legend(series: Sequence[Series]) -> list[Mapping[str, str | Markup]]:
    """Return name, sample, and mean over the first and the last tenth of each line that has a value."""
    legend: list[Mapping[str, str | Markup]] = []
    for index, one in enumerate(series):
        points = one.points()
        if points:
            tenth = math.ceil(len(points) / 10)
            first, last = (sum(y for _, y in part) / tenth for part in (points[:tenth], points[-tenth:]))
            ends = f"{format_value(first)} \u2192 {format_value(last)}"
            legend.append({"name": one.name, "swatch": swatch(index, one.color), "ends": ends})
    return legend
