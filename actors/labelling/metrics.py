"""Metrics of labelling about its rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from actors import metrics
from actors.labelling.fact_checker import FactQuestion, Findings
from fgaif_ray.audit.control_items import ControlItem
from fgaif_ray.feedback.labels import is_consistent
from fgaif_ray.feedback.verdicts import Thresholds


def record_prompt_tokens(verifier: str, found: Findings) -> None:
    """Export what the prefix cache of a verifier's engine (``first`` or ``second``) has saved."""
    metrics.VERIFIER_PROMPT_TOKENS.inc(found.cached_tokens, verifier=verifier, cache="hit")
    metrics.VERIFIER_PROMPT_TOKENS.inc(found.prompt_tokens - found.cached_tokens, verifier=verifier, cache="miss")


def record_control_items(
    found: Findings, control_items: Mapping[FactQuestion, ControlItem], thresholds: Thresholds
) -> None:
    """Export a verifier's false accepts; a control item without fact type is accepted at the lowest threshold."""
    for question, item in control_items.items():
        if (answer := found.answers.get(question)) is not None:
            truth = "true" if item.consistent else "false_with_order" if item.injected else "false"
            threshold = thresholds.get(item.type or "", min(thresholds.values()))
            metrics.CONTROL_ITEMS.inc(truth=truth, verdict=_verdict(is_consistent(answer.p_yes, threshold)))


def record_labelled(rows: Sequence[Mapping[str, Any]], rejected: Sequence[Mapping[str, Any]]) -> None:
    """Export the counts of a block from the first verifier: rows of ``feedback_schema`` and rejected ones."""
    metrics.LABELLED_RESPONSES.inc(len(rows))
    for reason, count in Counter(row["reason"].partition(":")[0] for row in rejected).items():
        metrics.REJECTED_RESPONSES.inc(count, reason=reason)
    _record_facts("first", "consistent", rows)


def record_verified_again(rows: Sequence[Mapping[str, Any]]) -> None:
    """Export the counts of a part from the second verifier."""
    _record_facts("second", "second_consistent", rows)
    facts = [fact for row in rows for segment in row["segments"] for fact in segment["facts"]]
    differing = Counter(
        fact["type"]
        for fact in facts
        if fact["second_consistent"] is not None and fact["second_consistent"] != fact["consistent"]
    )
    for fact_type, count in differing.items():
        metrics.VERIFIER_DISAGREEMENTS.inc(count, fact_type=fact_type)


def _record_facts(verifier: str, column: str, rows: Sequence[Mapping[str, Any]]) -> None:
    facts = (fact for row in rows for segment in row["segments"] for fact in segment["facts"])
    counts = Counter((fact["type"], fact[column]) for fact in facts if fact[column] is not None)
    for (fact_type, consistent), count in counts.items():
        metrics.VERIFIED_FACTS.inc(count, verifier=verifier, fact_type=fact_type, verdict=_verdict(consistent))


def _verdict(consistent: bool) -> str:
    return "consistent" if consistent else "hallucinated"
