"""``results.json``: every variant and metric of an experiment, over its seeds and against its partner."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fgaif_ray.experiments.metrics import METRICS, RunMetric
from fgaif_ray.experiments.variants import Experiment, Share
from fgaif_ray.statistics.intervals import CONFIDENCE
from fgaif_ray.statistics.paired import Mean, mean_interval, paired_difference

RESULTS_FILE: Final = "results.json"
DONE, FAILED, PENDING = "done", "failed", "pending"
OVER_SEEDS, OVER_IMAGES = "seeds", "images"
"""The unit that an interval is over."""


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a run ended, and its metrics."""

    variant: str
    seed: int
    folder: str
    status: str
    figures: Mapping[str, RunMetric]
    error: str | None = None
    """The last lines that a failed run wrote."""


def build_results(experiment: Experiment, outcomes: Sequence[RunOutcome]) -> dict[str, Any]:
    """Compare the variants; JSON-serialisable.

    A metric over two or more seeds has the mean's t interval over seeds, one of a single seed the interval over images
    that its evaluation has, or none. A difference is paired by seed; over a single seed it has no interval.
    """
    by_variant = {
        variant.name: [one for one in outcomes if one.variant == variant.name] for variant in experiment.variants
    }
    values = {name: _values(runs) for name, runs in by_variant.items()}
    whole = values[experiment.reference.name]
    for found in values.values():
        found |= {share.metric: left for share in experiment.shares if (left := _left(share, found, whole))}
    variants = []
    for variant in experiment.variants:
        partner = experiment.partner(variant)
        figures = {}
        for metric in METRICS:
            of_seed = values[variant.name].get(metric.name)
            if not of_seed:
                continue
            entry = _entry(of_seed)
            if partner is not None:
                reference = values[partner].get(metric.name, {})
                difference = paired_difference(_plain(of_seed), _plain(reference))
                entry["difference"] = None if difference is None else _mean(difference, OVER_SEEDS)
            figures[metric.name] = entry
        variants.append(
            {
                "name": variant.name,
                "title": variant.title,
                "compared_with": partner,
                "family": variant.family,
                "level": variant.level,
                "overrides": list(variant.overrides),
                "figures": figures,
                "runs": [
                    {"seed": one.seed, "status": one.status, "folder": one.folder, "error": one.error}
                    for one in by_variant[variant.name]
                ],
            }
        )
    return {
        "experiment": experiment.name,
        "question": experiment.question,
        "notes": list(experiment.notes),
        "groups": list(experiment.groups),
        "confidence": CONFIDENCE,
        "reference": experiment.reference.name,
        "seeds": sorted({one.seed for one in outcomes}),
        "variants": variants,
    }


def _values(runs: Sequence[RunOutcome]) -> dict[str, dict[int, RunMetric]]:
    """Return metric -> seed -> value, of the runs that are done."""
    found: dict[str, dict[int, RunMetric]] = {}
    for run in runs:
        if run.status == DONE:
            for name, figure in run.figures.items():
                found.setdefault(name, {})[run.seed] = figure
    return found


def _left(
    share: Share, found: Mapping[str, Mapping[int, RunMetric]], reference: Mapping[str, Mapping[int, RunMetric]]
) -> dict[int, RunMetric]:
    """Return seed -> share of what the reference has, for the seeds of both where it has more than nothing."""
    whole = {seed: one.value - share.nothing for seed, one in reference.get(share.of, {}).items()}
    own = {seed: one.value - share.nothing for seed, one in found.get(share.of, {}).items()}
    return {seed: RunMetric(own[seed] / whole[seed]) for seed in own if whole.get(seed, 0.0) > 0}


def _plain(figures: Mapping[int, RunMetric]) -> dict[int, float]:
    return {seed: figure.value for seed, figure in figures.items()}


def _entry(figures: Mapping[int, RunMetric]) -> dict[str, Any]:
    mean = mean_interval(list(_plain(figures).values()))
    entry = _mean(mean, OVER_SEEDS)
    if mean.count == 1:
        (only,) = figures.values()
        if only.interval is not None:
            entry |= {"interval": list(only.interval), "over": OVER_IMAGES}
    return entry | {"by_seed": {str(seed): figure.value for seed, figure in sorted(figures.items())}}


def _mean(mean: Mean, over: str) -> dict[str, Any]:
    return {
        "mean": mean.value,
        "interval": None if mean.interval is None else list(mean.interval),
        "over": over if mean.interval is not None else None,
        "standard_deviation": mean.standard_deviation,
        "seeds": mean.count,
    }
