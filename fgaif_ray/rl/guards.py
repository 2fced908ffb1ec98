"""Guards: named conditions under which a run stops with the reason, because going on would only waste machines.

It does not import torch, so that the configuration is read quickly.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fgaif_ray.config import GuardConfig


class TrainingStopped(RuntimeError):
    """A guard ended the training. Its message opens with the guard's name."""

    @property
    def reason(self) -> str:
        """Keep the guard's name, what was seen, and what to change."""
        return str(self.args[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """The metrics that the guards check after each PPO step."""

    kl: float
    """Mean KL to the reference, nats per token."""
    entropy: float
    """Mean entropy of the policy, nats per token."""
    response_length: float
    """Mean response tokens."""
    identical_share: float
    """See `identical_response_share`."""
    repeated_share: float = 0.0
    """Of all segments, those that say again what their response has said."""
    unfinished_share: float = 0.0
    """Of all responses, those that were cut before they ended."""
    missing_reward_share: float
    facts_per_response: float
    """See `trajectories.facts_per_response`."""
    non_finite: bool = False
    """Whether the step was skipped because a loss or gradient was not finite."""


class TrainingGuards:
    """The guards of a run, called once per step; they raise `TrainingStopped` when a guard's patience is over.

    Example: `guards = TrainingGuards(GuardConfig(max_kl=0.5)); guards.check(StepMetrics(...))`
    """

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self._streaks: Counter[str] = Counter()
        self._baseline_lengths: list[float] = []
        self._baseline_facts: list[float] = []

    def check(self, metrics: StepMetrics) -> None:
        """Check one step.

        A step that is not finite, or without any reward, counts only for its own guard, since its other metrics
        mean nothing.

        Raises:
            TrainingStopped: a guard fired.
        """
        self._above(
            "missing rewards",
            metrics.missing_reward_share,
            "max_missing_reward_share",
            "of the rewards is unavailable",
            "look at the reward service",
        )
        if metrics.missing_reward_share == 1:
            return
        non_finite = metrics.non_finite or not all(map(math.isfinite, asdict(metrics).values()))
        self.check_update(non_finite)
        if non_finite:
            return
        length_share = self._share_of_baseline(metrics.response_length, self._baseline_lengths)
        coverage_share = self._share_of_baseline(metrics.facts_per_response, self._baseline_facts)
        self._above(
            "KL explosion",
            metrics.kl,
            "max_kl",
            "nats per token to the reference",
            "raise the KL weight",
        )
        self._above(
            "identical responses",
            metrics.identical_share,
            "max_identical_share",
            "of the responses are the same",
            "raise the KL weight or lower the learning rate",
        )
        self._above(
            "repetition",
            metrics.repeated_share,
            "max_repeated_share",
            "of the segments repeat what was said",
            "judge novelty (run.fact_types), or make length cost more",
        )
        self._above(
            "unfinished responses",
            metrics.unfinished_share,
            "max_unfinished_share",
            "of the responses were cut before they ended",
            "raise align.rollout.max_tokens or what a missing end costs",
        )
        self._above(
            "length growth",
            length_share,
            "max_length_growth",
            "times the responses' first length",
            "make length cost more (align.reward.length_penalty), or judge novelty",
        )
        self._below(
            "entropy collapse",
            metrics.entropy,
            "min_entropy",
            "nats per token",
            "raise the entropy or KL weight or lower the learning rate",
        )
        self._below(
            "length collapse",
            length_share,
            "min_length_share",
            "of the responses' first length is left",
            "raise the KL weight or look at what the rewards pay for",
        )
        self._below(
            "coverage collapse",
            coverage_share,
            "min_coverage_share",
            "of the first facts per response are left",
            "the policy learns to say less: raise the KL weight or what true facts earn",
        )

    def check_update(self, non_finite: bool) -> None:
        """Check a step's update alone, where there are no responses to look at.

        Args:
            non_finite: whether a loss, gradient or metric of it is not finite.

        Raises:
            TrainingStopped: too many in a row are not.
        """
        most = self._config.max_non_finite_streak
        if self._beyond("non-finite streak", non_finite, most):
            raise TrainingStopped(
                f"non-finite streak: {most} steps in a row had a loss, gradient or metric that is not finite; lower "
                "the learning rate, look for broken inputs, or change align.guards.max_non_finite_streak"
            )

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable state of the streaks and baselines."""
        return {
            "streaks": dict(self._streaks),
            "baseline_lengths": list(self._baseline_lengths),
            "baseline_facts": list(self._baseline_facts),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`."""
        self._streaks = Counter(state["streaks"])
        self._baseline_lengths = list(state["baseline_lengths"])
        self._baseline_facts = list(state["baseline_facts"])

    def _share_of_baseline(self, figure: float, baseline: list[float]) -> float:
        """Divide the metric by the mean of the first ones; 1 while those are gathered, or if they are zero."""
        if len(baseline) < self._config.baseline_steps:
            baseline.append(figure)
            return 1.0
        mean = sum(baseline) / len(baseline)
        return figure / mean if mean > 0 else 1.0

    def _above(self, guard: str, figure: float, key: str, seen: str, advice: str) -> None:
        threshold: float | None = getattr(self._config, key)
        if threshold is not None and self._beyond(guard, figure > threshold, self._config.patience):
            raise TrainingStopped(self._message(guard, figure, f"more than {threshold:g}", key, seen, advice))

    def _below(self, guard: str, figure: float, key: str, seen: str, advice: str) -> None:
        threshold: float | None = getattr(self._config, key)
        if threshold is not None and self._beyond(guard, figure < threshold, self._config.patience):
            raise TrainingStopped(self._message(guard, figure, f"less than {threshold:g}", key, seen, advice))

    def _message(self, guard: str, figure: float, bound: str, key: str, seen: str, advice: str) -> str:
        steps = self._config.patience
        return (
            f"{guard}: {figure:.4g} {seen}, {bound} for {steps} steps in a row; {advice}, or change align.guards.{key}"
        )

    def _beyond(self, guard: str, beyond: bool, patience: int | None) -> bool:
        self._streaks[guard] = self._streaks[guard] + 1 if beyond else 0
        return patience is not None and self._streaks[guard] >= patience


def identical_response_share(responses: Sequence[str]) -> float:
    """Return the share of the most common response, 0 if all differ.

    Raises:
        ValueError: there are no responses.
    """
    if not responses:
        raise ValueError("there are no responses")
    most_common = Counter(responses).most_common(1)[0][1]
    return most_common / len(responses) if most_common > 1 else 0.0
