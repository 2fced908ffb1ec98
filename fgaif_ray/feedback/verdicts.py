"""From P(yes) of one or two verifiers to the labels of a response: thresholds, masks, and replaced labels."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fgaif_ray.fact_types import FactType, extracted, type_names
from fgaif_ray.feedback.labels import is_consistent, segment_labels
from fgaif_ray.feedback.overrides import Overrides
from fgaif_ray.records import AI, Feedback, JudgedFact, Response, Segment, VerifiedFact, VerifiedSegment
from fgaif_ray.statistics.agreement import accuracy, cohens_kappa

Thresholds = Mapping[str, float]
"""P(yes) by fact type that makes a fact consistent."""


class Labeller:
    """Labeller of responses whose facts have been verified; the same response always gets the same labels.

    Args:
        thresholds: of the first verifier.
        second: thresholds of the second one, None without one.
        mask: take a label out of training where the verifiers disagree on a fact that decides it.
        overrides: human labels and noise.
        annotator: what the labels depend on, for the rows.
        fact_types: what is labelled.
    """

    def __init__(
        self,
        thresholds: Thresholds,
        second: Thresholds | None,
        mask: bool,
        overrides: Overrides,
        annotator: str,
        fact_types: Sequence[FactType],
    ) -> None:
        self._thresholds = thresholds
        self._second = second
        self._mask = mask
        self._overrides = overrides
        self._annotator = annotator
        self._names = type_names(fact_types)
        self._extracted = type_names(extracted(fact_types))
        self._derived = {one.name: one.derive for one in fact_types if one.derive is not None}

    def label(self, response: Response, segments: Sequence[VerifiedSegment]) -> Feedback:
        """Label the segments of a response by what verifiers said of their facts; labelled ones are labelled again."""
        judged = [self._judge_segment(segment) for segment in segments]
        derived = {name: derive(judged) for name, derive in self._derived.items()}
        labelled = []
        for index, segment in enumerate(judged):
            labels = {**segment.ai_labels, **{name: codes[index] for name, codes in derived.items()}}
            labelled.append(_by_ai(segment, segment.facts, {name: labels[name] for name in self._names}))
        masked = [masked_types(segment.facts) if self._mask else set() for segment in labelled]
        return Feedback(
            response=response,
            segments=self._overrides.apply(response.sample_id, labelled, masked),
            annotator=self._annotator,
        )

    def _judge_segment(self, segment: VerifiedSegment) -> Segment:
        """Judge the facts of a segment, and label it as to the types that are extracted."""
        facts = tuple(self._judge(fact) for fact in segment.facts)
        labels = segment_labels(((fact.type, fact.consistent) for fact in facts), self._extracted)
        return _by_ai(segment, facts, labels)

    def _judge(self, fact: VerifiedFact) -> JudgedFact:
        second = fact.second_p_consistent if self._second is not None else None
        return JudgedFact(
            type=fact.type,
            text=fact.text,
            p_consistent=fact.p_consistent,
            consistent=is_consistent(fact.p_consistent, self._thresholds[fact.type]),
            second_p_consistent=second,
            second_consistent=None
            if second is None or self._second is None
            else is_consistent(second, self._second[fact.type]),
        )


def _by_ai(place: VerifiedSegment, facts: tuple[JudgedFact, ...], labels: Mapping[str, int]) -> Segment:
    """Build a segment whose labels are all the AI's."""
    return Segment(
        start=place.start,
        end=place.end,
        text=place.text,
        facts=facts,
        labels=labels,
        ai_labels=labels,
        label_sources=dict.fromkeys(labels, AI),
    )


def masked_types(facts: Sequence[JudgedFact]) -> set[str]:
    """Find the fact types of a segment whose label depends on a fact that two verifiers judge differently.

    A fact that both call wrong makes the segment hallucinated whatever the others are. A fact that the second
    could not be asked about counts as the first judges it.
    """
    masked: set[str] = set()
    for name in {fact.type for fact in facts}:
        pairs = [_pair(fact) for fact in facts if fact.type == name]
        if (False, False) not in pairs and any(first != second for first, second in pairs):
            masked.add(name)
    return masked


def _pair(fact: JudgedFact) -> tuple[bool, bool]:
    return fact.consistent, fact.consistent if fact.second_consistent is None else fact.second_consistent


class Disagreements:
    """Counter of how two verifiers judge the same facts, as rows are read."""

    def __init__(self, types: Sequence[str]) -> None:
        self._pairs: dict[str, Counter[tuple[bool, bool]]] = {name: Counter() for name in types}
        self._unanswered: Counter[str] = Counter()

    def add(self, feedback: Feedback) -> None:
        """Count one row of ``feedback/``."""
        for segment in feedback.segments:
            for fact in segment.facts:
                if fact.second_consistent is None:
                    self._unanswered[fact.type] += 1
                else:
                    self._pairs[fact.type][fact.consistent, fact.second_consistent] += 1

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serialisable metrics by fact type, and for ``all``.

        ``facts`` both judged, how many of them they judge differently (``disagreements``, as a ``share`` too, and by
        who calls the fact right), Cohen's ``kappa`` (None where chance alone would always agree), and the facts that
        the second verifier could not be asked about (``unanswered``).
        """
        everything: Counter[tuple[bool, bool]] = sum(self._pairs.values(), Counter())
        return {
            name: _figures(pairs, unanswered)
            for name, pairs, unanswered in (
                ("all", everything, self._unanswered.total()),
                *((name, self._pairs[name], self._unanswered[name]) for name in self._pairs),
            )
        }


def _figures(pairs: Counter[tuple[bool, bool]], unanswered: int) -> dict[str, Any]:
    table = np.array([[pairs[first, second] for second in (False, True)] for first in (False, True)], dtype=np.float64)
    agreement, kappa = float(accuracy(table)), float(cohens_kappa(table))
    only_first, only_second = pairs[True, False], pairs[False, True]
    return {
        "facts": pairs.total(),
        "disagreements": only_first + only_second,
        "share": None if np.isnan(agreement) else 1 - agreement,
        "agreement": None if np.isnan(agreement) else agreement,
        "kappa": None if np.isnan(kappa) else kappa,
        "only_first_says_right": only_first,
        "only_second_says_right": only_second,
        "unanswered": unanswered,
    }
