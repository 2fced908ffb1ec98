"""What labelling exports: what was found in the rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from actors import metrics
from actors.labelling.fact_checker import FactQuestion, Findings
from fgaif_ray.audit.control_items import Canary
from fgaif_ray.feedback.labels import is_consistent
from fgaif_ray.feedback.verdicts import Thresholds


def record_prompt_tokens(verifier: str, found: Findings) -> None:
    """Export what the prefix cache of a verifier's engine (``first`` or ``second``) has spared it."""
    metrics.VERIFIER_PROMPT_TOKENS.inc(found.cached_tokens, verifier=verifier, cache="hit")
    metrics.VERIFIER_PROMPT_TOKENS.inc(found.prompt_tokens - found.cached_tokens, verifier=verifier, cache="miss")


def record_canaries(found: Findings, canaries: Mapping[FactQuestion, Canary], thresholds: Thresholds) -> None:
    """Export how gullible a verifier was; a canary of no fact type is believed at the lowest of the thresholds."""
    for question, canary in canaries.items():
        if (answer := found.answers.get(question)) is not None:
            truth = "true" if canary.consistent else "false_with_order" if canary.injected else "false"
            threshold = thresholds.get(canary.type or "", min(thresholds.values()))
            metrics.CANARIES.inc(truth=truth, verdict=_verdict(is_consistent(answer.p_yes, threshold)))


def record_labelled(rows: Sequence[Mapping[str, Any]], rejected: Sequence[Mapping[str, Any]]) -> None:
    """Export a block that the first verifier has gone through: rows of ``feedback_schema`` and rejected ones."""
    metrics.LABELLED_RESPONSES.inc(len(rows))
    for reason, count in Counter(row["reason"].partition(":")[0] for row in rejected).items():
        metrics.REJECTED_RESPONSES.inc(count, reason=reason)
    _record_facts("first", "consistent", rows)


def record_verified_again(rows: Sequence[Mapping[str, Any]]) -> None:
    """Export a part that the second verifier has gone through."""
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
