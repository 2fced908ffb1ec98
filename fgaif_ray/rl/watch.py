"""Metrics of a step for a person to watch, from the responses and the reward models' verdicts."""

import math
from collections.abc import Iterable, Sequence
from typing import Final

from fgaif_ray.records import ABSENT, HALLUCINATED, NOVELTY_TYPE
from fgaif_ray.rl.guards import StepMetrics, identical_response_share
from fgaif_ray.rl.trajectories import Trajectory, facts_per_response
from fgaif_ray.vlm.group import WeightedMean

_OF_TYPE: Final = "hallucination/"


def trajectory_metrics(trajectories: Sequence[Trajectory], types: Sequence[str]) -> dict[str, float]:
    """Measure rewards, facts, lengths and counts of a batch: each mean knows of how many responses or segments it is.

    ``reward/<type>`` is the weighted sum over a response's segments, averaged over responses; ``reward/total`` is
    what PPO is given, with the missing-EOS penalty. ``hallucination/<type>`` is the share of the segments with a
    fact of the type that the reward model calls hallucinated.

    Raises:
        ValueError: there are no trajectories.
    """
    rewarded = [one for one in trajectories if one.token_rewards is not None]
    lengths = [len(one.token_ids) for one in trajectories]
    metrics = {
        "reward/total": _mean([sum(one.token_rewards or ()) for one in rewarded]),
        "reward/missing_share": _mean([one.token_rewards is None for one in trajectories]),
        "facts/per_response": WeightedMean(facts_per_response(trajectories, types), len(rewarded)),
        "response/length": _mean(lengths),
        "response/length_max": float(max(lengths)),
        "response/segments": _mean([len(one.segment_spans) for one in rewarded]),
        "response/stopped_share": _mean([one.finish_reason == "stop" for one in trajectories]),
        "response/repeated_share": _repeated_share(rewarded, types),
        "response/identical_share": WeightedMean(
            identical_response_share([str(one.token_ids) for one in trajectories]), len(trajectories)
        ),
        "count/responses": float(len(trajectories)),
        "count/tokens": float(sum(lengths)),
        "count/missing_rewards": float(len(trajectories) - len(rewarded)),
    }
    for place, fact_type in enumerate(types):
        earned = [sum(types[place] for types in one.per_type_rewards or ()) for one in rewarded]
        classes = [most_probable(types[place]) for one in rewarded for types in one.class_probabilities or ()]
        facts = [found for found in classes if found != ABSENT]
        metrics[f"reward/{fact_type}"] = _mean(earned)
        metrics[f"{_OF_TYPE}{fact_type}"] = _mean([found == HALLUCINATED for found in facts])
    return metrics


def _repeated_share(rewarded: Sequence[Trajectory], types: Sequence[str]) -> WeightedMean:
    """The share of segments that repeat: by the novelty verdicts where there are any, else by their words."""
    if NOVELTY_TYPE in types:
        place = types.index(NOVELTY_TYPE)
        return _mean(
            [
                most_probable(verdicts[place]) == HALLUCINATED
                for one in rewarded
                for verdicts in one.class_probabilities or ()
            ]
        )
    repeats = []
    for one in rewarded:
        texts = [one.response[start:end].strip(" .,;").casefold() for start, end in one.segment_spans]
        repeats += [text in texts[:place] for place, text in enumerate(texts)]
    return _mean(repeats)


def types_of(metrics: Iterable[str]) -> tuple[str, ...]:
    """The fact types that the names of a step's metrics are about."""
    return tuple(name.removeprefix(_OF_TYPE) for name in metrics if name.startswith(_OF_TYPE))


def busy_share(intervals: Sequence[tuple[float, float]], start: float, end: float) -> float:
    """Return the share of the time from ``start`` to ``end`` that at least one interval covers.

    Example: ``busy_share([(0, 2), (1, 3)], 0, 4)`` is 0.75.
    """
    busy, reached = 0.0, start
    for begun, done in sorted(intervals):
        begun, done = max(begun, reached), min(done, end)
        busy += max(done - begun, 0.0)
        reached = max(reached, done)
    return busy / (end - start) if end > start else math.nan


def watched_by_guards(metrics: dict[str, float]) -> StepMetrics:
    """Select the guards' metrics from a step's merged metrics."""
    return StepMetrics(
        kl=metrics["kl/per_token"],
        entropy=metrics["policy/entropy"],
        response_length=metrics["response/length"],
        identical_share=metrics["response/identical_share"],
        repeated_share=_or_nothing(metrics["response/repeated_share"]),
        unfinished_share=1.0 - metrics["response/stopped_share"],
        missing_reward_share=metrics["reward/missing_share"],
        facts_per_response=metrics["facts/per_response"],
        non_finite=metrics["update/skipped"] > 0,
    )


def progress_note(metrics: dict[str, float | None]) -> str:
    """Format one line for a person: mean reward per type, facts per response, KL, length, seconds; of a step on
    preferences the loss, and how well pairs are told apart.
    """
    if "dpo/loss" in metrics:
        return (
            f"loss {_shown(metrics['dpo/loss'], 3)}, told apart {_shown(metrics['dpo/told_apart'])}, margin "
            f"{_shown(metrics['dpo/margin'])}, {_shown(metrics['timing/step'], 1)} s/step"
        )
    rewards = ", ".join(f"{fact_type} {_shown(metrics[f'reward/{fact_type}'])}" for fact_type in types_of(metrics))
    return (
        f"reward {_shown(metrics['reward/total'])} ({rewards}), facts {_shown(metrics['facts/per_response'])}, "
        f"KL {_shown(metrics['kl/per_response'])}, length {_shown(metrics['response/length'], 1)}, "
        f"{_shown(metrics['timing/step'], 1)} s/step"
    )


def _or_nothing(figure: float) -> float:
    """0 where there was no segment to measure."""
    return 0.0 if math.isnan(figure) else figure


def most_probable(classes: Sequence[float]) -> int:
    """The code of the class with the largest probability."""
    return max(range(len(classes)), key=classes.__getitem__)


def _mean(figures: Sequence[float]) -> WeightedMean:
    return WeightedMean(sum(figures) / len(figures) if figures else math.nan, len(figures))


def _shown(figure: float | None, digits: int = 2) -> str:
    return "-" if figure is None else f"{figure:.{digits}f}"
