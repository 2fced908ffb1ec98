"""Metrics that the first learner worker exports after each step."""

from collections.abc import Mapping

from actors import metrics
from fgaif_ray.rl.watch import types_of

_GAUGES = {
    "reward/total": metrics.PPO_TOTAL_REWARD,
    "facts/per_response": metrics.PPO_FACTS,
    "kl/per_response": metrics.PPO_KL,
    "kl/coefficient": metrics.PPO_KL_COEFFICIENT,
    "policy/entropy": metrics.PPO_ENTROPY,
    "policy/clip_share": metrics.PPO_CLIP,
    "critic/explained_variance_before": metrics.PPO_EXPLAINED_VARIANCE,
    "response/length": metrics.PPO_RESPONSE_TOKENS,
    "goodput/step_share": metrics.PPO_GOODPUT,
    "rollout/staleness": metrics.PPO_STALENESS,
    "rollout/log_prob_difference": metrics.PPO_LOG_PROB_DIFFERENCE,
}
_COUNTERS = {
    "count/tokens": metrics.PPO_TOKENS,
    "count/missing_rewards": metrics.PPO_MISSING_REWARDS,
    "update/skipped": metrics.PPO_SKIPPED_UPDATES,
}


def record_step(step: int, planned: int, figures: Mapping[str, float]) -> None:
    """Export a step.

    Args:
        step: updates that the policy has gone through.
        planned: steps of the run.
        figures: the step's merged metrics, as ``metrics.jsonl`` has them.
    """
    metrics.PPO_STEPS.inc()
    metrics.PPO_STEP.set(step)
    metrics.PPO_PLANNED_STEPS.set(planned)
    for name, gauge in _GAUGES.items():
        if name in figures:  # an algorithm without a critic has no figures of one, nor preferences of rewards
            gauge.set(figures[name])
    for name, counter in _COUNTERS.items():
        counter.inc(figures.get(name, 0))
    for fact_type in types_of(figures):
        metrics.PPO_REWARD.set(figures[f"reward/{fact_type}"], fact_type=fact_type)
        metrics.PPO_HALLUCINATION.set(figures[f"hallucination/{fact_type}"], fact_type=fact_type)
    for phase in metrics.PHASES:
        if (seconds := figures.get(f"timing/{phase}")) is not None:
            metrics.PPO_PHASE_DURATION.set(seconds, phase=phase)


def record_guards(streaks: Mapping[str, int]) -> None:
    """Export how long each guard's metric has been beyond its limit."""
    for guard in metrics.GUARDS:
        metrics.PPO_GUARD_STREAK.set(streaks.get(guard, 0), guard=guard)


def record_stop(reason: str) -> None:
    """Export that a guard has stopped the run; its name opens the reason."""
    metrics.PPO_GUARD_TRIPS.inc(guard=reason.partition(":")[0])
