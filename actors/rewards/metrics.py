"""Metrics of the gateway and the deployments of the reward service."""

from collections.abc import Sequence

from actors import metrics
from fgaif_ray.errors import ItemError, NonFiniteScoreError
from fgaif_ray.rewards.scoring import ScoringOutcome

FAILURES = frozenset({"scoring_failed"})
"""Codes of items that the service is to blame for."""


def record_answer(path: str, status: int, code: str | None, seconds: float) -> None:
    """Export an answer.

    Args:
        path: of the request, or ``handle`` for one from inside the cluster; an unknown route counts as ``other``.
        status: of the answer.
        code: of its error; None where it is none.
        seconds: from the request to the end of the answer.
    """
    metrics.REWARD_REQUESTS.inc(route=path, status=str(status))
    metrics.REWARD_REQUEST_DURATION.observe(seconds, route=path)
    if code is not None:
        metrics.REWARD_REJECTIONS.inc(code=code)


def record_items(outcomes: Sequence[object]) -> None:
    """Export the outcomes of the items of a request."""
    errors = [outcome for outcome in outcomes if isinstance(outcome, ItemError)]
    failed = sum(error.code in FAILURES for error in errors)
    metrics.REWARD_ITEMS.inc(len(outcomes) - len(errors), outcome="scored")
    metrics.REWARD_ITEMS.inc(len(errors) - failed, outcome="refused")
    metrics.REWARD_ITEMS.inc(failed, outcome="failed")


def record_batch(fact_types: Sequence[str], outcomes: Sequence[Sequence[ScoringOutcome]], seconds: float) -> None:
    """Export a batch of a reward deployment: what came back to each caller, and the time it took."""
    model = fact_types[0] if len(fact_types) == 1 else metrics.SHARED
    metrics.REWARD_BATCH_ITEMS.observe(sum(map(len, outcomes)), model=model)
    metrics.REWARD_FORWARD_DURATION.observe(seconds, model=model)
    non_finite = sum(isinstance(outcome, NonFiniteScoreError) for part in outcomes for outcome in part)
    metrics.REWARD_NON_FINITE.inc(non_finite, model=model)
