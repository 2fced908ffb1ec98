"""Metrics of labelling about its rows."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from actors import metrics
from actors.labelling.fact_checker import FactQuestion, Findings
from fgaif_ray.audit.control_items import ControlItem
from fgaif_ray.feedback.labels import is_consistent
from fgaif_ray.feedback.verdicts import Thresholds
from fgaif_ray.records import Feedback, JudgedFact, RejectedResponse


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


def record_labelled(labelled: Sequence[Feedback], rejected: Iterable[RejectedResponse]) -> None:
    """Export the counts of a block from the first verifier."""
    metrics.LABELLED_RESPONSES.inc(len(labelled))
    for reason, count in Counter(one.reason.partition(":")[0] for one in rejected).items():
        metrics.REJECTED_RESPONSES.inc(count, reason=reason)
    _record_verdicts("first", ((fact.type, fact.consistent) for fact in _facts(labelled)))


def record_verified_again(labelled: Sequence[Feedback]) -> None:
    """Export the counts of a part from the second verifier."""
    judged = [fact for fact in _facts(labelled) if fact.second_consistent is not None]
    _record_verdicts("second", ((fact.type, bool(fact.second_consistent)) for fact in judged))
    differing = Counter(fact.type for fact in judged if fact.second_consistent != fact.consistent)
    for fact_type, count in differing.items():
        metrics.VERIFIER_DISAGREEMENTS.inc(count, fact_type=fact_type)


def _facts(labelled: Sequence[Feedback]) -> list[JudgedFact]:
    return [fact for feedback in labelled for segment in feedback.segments for fact in segment.facts]


def _record_verdicts(verifier: str, verdicts: Iterable[tuple[str, bool]]) -> None:
    for (fact_type, consistent), count in Counter(verdicts).items():
        metrics.VERIFIED_FACTS.inc(count, verifier=verifier, fact_type=fact_type, verdict=_verdict(consistent))


def _verdict(consistent: bool) -> str:
    return "consistent" if consistent else "hallucinated"
