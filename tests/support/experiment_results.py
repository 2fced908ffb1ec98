"""Results of an experiment with made-up metrics, as ``build_results`` gives them."""

from typing import Any

from fgaif_ray.config import load_config
from fgaif_ray.experiments.metrics import RunMetric
from fgaif_ray.experiments.results import DONE, FAILED, RunOutcome, build_results
from fgaif_ray.experiments.variants import build_experiment


def results(name: str = "ablation", seeds: int = 3, error: str = "out of memory") -> dict[str, Any]:
    experiment = build_experiment(name, load_config("configs/shapes.yaml"))
    outcomes = []
    for place, variant in enumerate(experiment.variants):
        for seed in range(seeds):
            value = 0.2 + place / 20 + seed / 200
            figures = {
                "hallucination.overall": RunMetric(value, (value - 0.02, value + 0.02)),
                "hallucination.before": RunMetric(0.5),
                "coverage": RunMetric(1 - value, (0.9 - value, 1.1 - value)),
                "rewards_present.mean": RunMetric(0.9 - place / 50),
            }
            outcomes.append(RunOutcome(variant.name, seed, f"runs/{variant.name}", DONE, figures))
    last = experiment.variants[-1].name
    outcomes[-1] = RunOutcome(last, seeds - 1, f"runs/{last}", FAILED, {}, error)
    return build_results(experiment, outcomes)
