"""The page of an experiment: its tables and plots in one HTML file that loads nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from markupsafe import Markup

from fgaif_ray import __version__
from fgaif_ray.experiments.metrics import GROUP_TITLES, METRICS, NEITHER, Metric
from fgaif_ray.experiments.plots import Plot
from fgaif_ray.experiments.results import DONE, FAILED, OVER_IMAGES, OVER_SEEDS
from fgaif_ray.pages import page_environment, page_style
from fgaif_ray.report.formats import show_clock, show_count, show_share

_DASH: Final = "\u2013"


def build_page(results: Mapping[str, Any], command: str, plots: Sequence[Plot]) -> str:
    """Build the page as one HTML document; every text in it is escaped.

    Args:
        results: what ``build_results`` returned.
        command: the command line that makes this page.
        plots: what ``draw_plots`` drew of them.
    """
    environment = page_environment("fgaif_ray.experiments", "fgaif_ray.report")
    runs = [(variant, run) for variant in results["variants"] for run in variant["runs"]]
    html: str = environment.get_template("experiment.html.j2").render(
        style=Markup(page_style(environment, "report.css", "experiment.css")),
        results=results,
        command=command,
        tables=_tables(results),
        plots=plots,
        done=sum(run["status"] == DONE for _, run in runs),
        total=len(runs),
        failed=[(variant["title"], run) for variant, run in runs if run["status"] == FAILED],
        intervals=describe_intervals(results),
        version=__version__,
    )
    return html


def describe_intervals(results: Mapping[str, Any]) -> str:
    """Say in words what the intervals of this page are."""
    confidence = f"{results['confidence']:.0%}"
    over = {entry["over"] for variant in results["variants"] for entry in variant["figures"].values()}
    sentences = []
    if OVER_SEEDS in over:
        sentences.append(
            f"Metrics over several seeds have the {confidence} t interval of their mean over seeds; differences are "
            "paired by seed, with the t interval of their mean."
        )
    if OVER_IMAGES in over:
        sentences.append(
            f"Metrics of a single seed have a {confidence} bootstrap interval over the images of the evaluation, which "
            "does not cover what another seed of training would change; their differences have none."
        )
    if not sentences:
        sentences.append("There are no intervals: they need two seeds, or an evaluation with intervals.")
    return " ".join(sentences)


def show_figure(value: float, kind: str) -> str:
    """Format a value in the unit of its metric."""
    if kind == "share":
        return show_share(value)
    if kind == "seconds":
        return show_clock(value)
    if kind == "count":
        return show_count(value)
    return f"{value:.2f}" + ("\u2009GiB" if kind == "gib" else "")


def show_difference(value: float, kind: str) -> str:
    """Format a difference with its sign, shares in percentage points."""
    sign = "+" if value >= 0 else "\u2212"
    if kind == "share":
        return f"{sign}{abs(100 * value):.1f}"
    return sign + show_figure(abs(value), kind)


def _tables(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Build one table per group of metrics, variants as rows; metrics that no variant has are left out."""
    order = [*results["groups"], *(group for group in GROUP_TITLES if group not in results["groups"])]
    tables = []
    for group in order:
        metrics = [
            metric
            for metric in METRICS
            if metric.group == group and any(metric.name in variant["figures"] for variant in results["variants"])
        ]
        if metrics:
            rows = [{"title": variant["title"], "cells": _cells(variant, metrics)} for variant in results["variants"]]
            tables.append(
                {
                    "title": GROUP_TITLES[group],
                    "columns": [metric.title for metric in metrics],
                    "rows": rows,
                    "main": group in results["groups"],
                }
            )
    return tables


def _cells(variant: Mapping[str, Any], metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    return [_cell(variant["figures"].get(metric.name), metric) for metric in metrics]


def _cell(entry: Mapping[str, Any] | None, metric: Metric) -> dict[str, Any]:
    if entry is None:
        return {"text": _DASH, "bounds": None, "difference": None, "kind": "neutral", "seeds": ""}
    bounds = entry["interval"]
    if bounds is not None:
        bounds = " to ".join(show_figure(max(bound, 0.0), metric.kind) for bound in bounds)
    difference = entry.get("difference")
    cell = {
        "text": show_figure(entry["mean"], metric.kind),
        "bounds": bounds,
        "difference": None,
        "kind": "neutral",
        "seeds": ", ".join(f"seed {seed}: {show_figure(one, metric.kind)}" for seed, one in entry["by_seed"].items()),
    }
    if difference is None:
        return cell
    text = show_difference(difference["mean"], metric.kind)
    if difference["interval"] is not None:
        low, high = difference["interval"]
        text += f" [{show_difference(low, metric.kind)}, {show_difference(high, metric.kind)}]"
        # Coloured only where the interval leaves no doubt about the sign.
        if metric.good != NEITHER and (low > 0 or high < 0):
            cell["kind"] = "good" if difference["mean"] * metric.good > 0 else "bad"
    return cell | {"difference": text}
