"""Evaluation while training: what greedy responses to images that nothing is learnt from say of a policy.

The rewards that a policy is trained on rise whatever it learns to exploit, and they are of responses sampled at T=1.
Every ``align.evaluate_every`` steps the policy answers the same images greedily, as people decode. The reward models
judge the answers, on the embedded world the truth does too, and ``align.best_by`` names the metric whose best policy is
published. The images are taken from those to align on, so that those of ``evaluate`` choose nothing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from fgaif_ray.config.align import EVALUATION_DIRECTIONS
from fgaif_ray.evaluation.hallucination import Description, count_response
from fgaif_ray.records import ABSENT, HALLUCINATED, NOVELTY_TYPE
from fgaif_ray.rl.kept_policy import KeptPolicy
from fgaif_ray.rl.trajectories import Trajectory
from fgaif_ray.rl.watch import most_probable, trajectory_metrics
from fgaif_ray.vlm.group import WeightedMean

PREFIX: Final = "evaluation/"
"""Begins the names of these metrics among those of a step."""
_KEPT: Final = ("reward/", "hallucination/", "facts/per_response", "response/length", "response/repeated_share")
_TRUTH: Final = {
    "existence": "hallucination/existence",
    "attribute": "hallucination/attribute",
    "relation": "hallucination/relation",
    "overall": "hallucination/overall",
    "coverage": "coverage",
    "facts_per_response": "facts_per_response",
    "repetition": "repeated_share",
}


def held_out_metrics(
    trajectories: Sequence[Trajectory], types: Sequence[str], descriptions: Sequence[Description] = ()
) -> dict[str, WeightedMean]:
    """Measure a policy's greedy responses; each mean knows of how many it is.

    Args:
        trajectories: at least one response, with the reward models' verdicts, rewarded without a running scale, so that
            steps can be compared.
        descriptions: the same responses with the scenes that they are about, where the truth is known.
        types: the fact types, in the order of arrays.

    Returns:
        By names that begin with ``PREFIX``, as those of a step's responses are called (``reward/total``,
        ``facts/per_response``); ``hallucination/overall`` is the share of segments with a fact of which some is called
        hallucinated, ``response/unfinished_share`` that of responses cut before they ended. What the truth says begins
        with ``truth/``: see ``fgaif_ray.evaluation.hallucination.count_response``.
    """
    found = trajectory_metrics(trajectories, types)
    kept = {name: value for name, value in found.items() if name.startswith(_KEPT)}
    kept["hallucination/overall"] = _hallucinated_share(trajectories, types)
    cut = [one.finish_reason != "stop" for one in trajectories]
    kept["response/unfinished_share"] = WeightedMean(sum(cut) / len(cut), len(cut))
    if descriptions:
        counts = [count_response(one) for one in descriptions]
        for name, metric in _TRUTH.items():
            part, whole = (sum(count[name][place] for count in counts) for place in (0, 1))
            kept[f"truth/{metric}"] = WeightedMean(part / whole if whole else 0.0, whole)
    return {f"{PREFIX}{name}": WeightedMean(value, getattr(value, "weight", 1.0)) for name, value in kept.items()}


def _hallucinated_share(trajectories: Sequence[Trajectory], types: Sequence[str]) -> WeightedMean:
    facts = [place for place, name in enumerate(types) if name != NOVELTY_TYPE]
    verdicts = [
        [most_probable(segment[place]) for place in facts]
        for one in trajectories
        for segment in one.class_probabilities or ()
    ]
    stated = [codes for codes in verdicts if any(code != ABSENT for code in codes)]
    wrong = sum(HALLUCINATED in codes for codes in stated)
    return WeightedMean(wrong / len(stated) if stated else 0.0, len(stated))


class BestPolicy:
    """The policy of the step whose evaluation was the best so far, by one metric."""

    def __init__(self, kept: KeptPolicy, metric: str, least_facts: float = 0.0) -> None:
        """Start without one.

        Args:
            kept: holds the policy's copy.
            metric: without ``PREFIX``; its name says whether more or less of it is better.
            least_facts: a policy counts only if it states at least this share of what the first evaluation stated:
                coverage where the truth is known, else facts per response.
        """
        self.kept, self._metric, self._least = kept, metric, least_facts
        self.step: int | None = None
        self.value: float | None = None
        self._facts_before: float | None = None

    def consider(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep the present policy if it is the best; of equals, the first.

        Args:
            step: updates that it has gone through. That of step 0 sets what is compared with, and is never kept.
            metrics: the evaluation's, merged over all processes.
        """
        stated = metrics.get(f"{PREFIX}truth/coverage", metrics[f"{PREFIX}facts/per_response"])
        if step == 0:
            self._facts_before = stated
            return
        value = metrics[f"{PREFIX}{self._metric}"]
        enough = self._facts_before is None or stated >= self._least * self._facts_before
        if not math.isnan(value) and enough and (self.value is None or self._is_better(value, self.value)):
            self.step, self.value = step, value
            self.kept.keep()

    def state_dict(self) -> dict[str, float | int | None]:
        """Return the JSON-serialisable part of the state; ``kept`` has the other one."""
        return {"step": self.step, "value": self.value, "facts_before": self._facts_before}

    def load_state_dict(self, state: Mapping[str, float | int | None]) -> None:
        """Restore a ``state_dict``."""
        self.step = None if state["step"] is None else int(state["step"])
        self.value, self._facts_before = state["value"], state["facts_before"]

    def _is_better(self, value: float, other: float) -> bool:
        lowest = direction_of(self._metric) == "lowest"
        return value < other if lowest else value > other


def direction_of(metric: str) -> str:
    """Return which value of an evaluation's metric is the best, ``highest`` or ``lowest``."""
    return next(way for start, way in EVALUATION_DIRECTIONS.items() if metric.startswith(start))
