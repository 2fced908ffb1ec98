"""Metrics of scored answers with intervals, differences of two models on the same questions, and a table of both."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fgaif_ray.evaluation.benchmarks.base import RATE, Scores
from fgaif_ray.statistics.intervals import Floats, estimate_figures
from fgaif_ray.tables import table_lines


def measure(scores: Scores, seed: int = 0) -> dict[str, Any]:
    """Measure a model; the result is JSON-serialisable.

    Returns:
        ``figures``: name -> ``value`` (rates between 0 and 1) and its 95 % ``interval`` from a bootstrap over images,
        None where not defined; ``answers`` that were scored; and ``counts``.
    """
    estimates = estimate_figures(scores.images, scores.columns, scores.figures, seed=seed)
    return {
        "answers": len(scores.ids),
        "figures": {name: estimate.to_dict() for name, estimate in zip(scores.scales, estimates, strict=True)},
        "counts": dict(scores.counts),
    }


def compare(first: Scores, second: Scores, seed: int = 0) -> dict[str, Any]:
    """Subtract the first model's metrics from the second's, on the questions for which both have a score.

    The bootstrap draws the same images for both, so what makes an image hard for both does not widen the interval.

    Returns:
        ``figures`` as in ``measure``, of differences, and ``answers`` compared.

    Raises:
        ValueError: the two are of different benchmarks.
    """
    if list(first.scales) != list(second.scales) or first.columns.shape[1:] != second.columns.shape[1:]:
        raise ValueError("only scores of one benchmark can be compared")
    places = {id_: row for row, id_ in enumerate(second.ids)}
    shared = [(row, places[id_]) for row, id_ in enumerate(first.ids) if id_ in places]
    rows = np.array([a for a, _ in shared], dtype=np.intp), np.array([b for _, b in shared], dtype=np.intp)
    both = np.concatenate([first.columns[rows[0]], second.columns[rows[1]]], axis=1)
    width = first.columns.shape[1]

    def differences(sums: Floats) -> Floats:
        return second.figures(sums[:, width:]) - first.figures(sums[:, :width])

    estimates = estimate_figures([first.images[row] for row in rows[0].tolist()], both, differences, seed=seed)
    return {
        "answers": len(shared),
        "figures": {name: estimate.to_dict() for name, estimate in zip(first.scales, estimates, strict=True)},
    }


def table(
    title: str, scales: Mapping[str, float], models: Mapping[str, Any], comparisons: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Format a table as lines: a row for each metric, a column for each model and each comparison.

    Args:
        title: of the benchmark.
        scales: metric -> factor with which it is printed.
        models: name -> what ``measure`` gave.
        comparisons: what ``compare`` gave, with ``first`` and ``second``.
    """
    head = [title, *models, *(f"{entry['second']} - {entry['first']}" for entry in comparisons)]
    rows = [head]
    for name, scale in scales.items():
        cells = [_cell(model["figures"][name], scale) for model in models.values()]
        cells += [_cell(entry["figures"][name], scale, sign="+") for entry in comparisons]
        rows.append([f"  {name}{' %' if scale == RATE else ''}", *cells])
    counts = dict.fromkeys(name for model in models.values() for name, count in model["counts"].items() if count)
    rows += [[f"  {name}", *(str(model["counts"].get(name, 0)) for model in models.values())] for name in counts]
    return table_lines(rows, right=range(1, len(head)))


def _cell(figure: Mapping[str, Any], scale: float, sign: str = "") -> str:
    if figure["value"] is None:
        return "-"
    digits = 1 if scale == RATE or abs(figure["value"]) >= 20 else 2
    text = f"{figure['value'] * scale:{sign}.{digits}f}"
    if figure["interval"] is None:
        return text
    low, high = (f"{bound * scale:{sign}.{digits}f}" for bound in figure["interval"])
    return f"{text} [{low}, {high}]"
