"""From P(yes) of one or two verifiers to the labels of a response: thresholds, masks, and replaced labels."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fgaif_ray.fact_types import DEFAULT, FactType, extracted, type_names
from fgaif_ray.feedback.labels import is_consistent, segment_labels
from fgaif_ray.feedback.overrides import Overrides
from fgaif_ray.records import FACT_TYPES
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
        fact_types: Sequence[FactType] = DEFAULT,
    ) -> None:
        self._thresholds = thresholds
        self._second = second
        self._mask = mask
        self._overrides = overrides
        self._annotator = annotator
        self._names = type_names(fact_types)
        self._extracted = type_names(extracted(fact_types))
        self._derived = {one.name: one.derive for one in fact_types if one.derive is not None}

    def label(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Build a row of ``feedback_schema``.

        Args:
            row: a response with ``segments`` of ``start``, ``end``, ``text`` and ``facts``; a fact has ``type``,
                ``text``, ``p_consistent`` and, from a second verifier, ``second_p_consistent``.
        """
        segments = []
        for segment in row["segments"]:
            facts = [self._judge(fact) for fact in segment["facts"]]
            masked = masked_types(facts) if self._mask else set()
            labels = segment_labels(((fact["type"], fact["consistent"]) for fact in facts), self._extracted)
            place = {key: segment[key] for key in ("start", "end", "text")}
            segments.append(place | {"facts": facts, "labels": labels, "masked": masked})
        derived = {name: derive(segments) for name, derive in self._derived.items()}
        for index, segment in enumerate(segments):
            labels = segment["labels"] | {name: codes[index] for name, codes in derived.items()}
            segment["labels"] = {name: labels[name] for name in self._names}
        return {
            **row,
            "segments": self._overrides.apply(row["sample_id"], segments),
            "annotator": self._annotator,
        }

    def _judge(self, fact: Mapping[str, Any]) -> dict[str, Any]:
        second = fact.get("second_p_consistent") if self._second is not None else None
        return {
            "type": fact["type"],
            "text": fact["text"],
            "p_consistent": fact["p_consistent"],
            "consistent": is_consistent(fact["p_consistent"], self._thresholds[fact["type"]]),
            "second_p_consistent": second,
            "second_consistent": None
            if second is None or self._second is None
            else is_consistent(second, self._second[fact["type"]]),
        }


def masked_types(facts: Sequence[Mapping[str, Any]]) -> set[str]:
    """Find the fact types of a segment whose label depends on a fact that two verifiers judge differently.

    A fact that both call wrong makes the segment hallucinated whatever the others are. A fact that the second
    could not be asked about counts as the first judges it.
    """
    masked: set[str] = set()
    for name in {fact["type"] for fact in facts}:
        pairs = [_pair(fact) for fact in facts if fact["type"] == name]
        if (False, False) not in pairs and any(first != second for first, second in pairs):
            masked.add(name)
    return masked


def _pair(fact: Mapping[str, Any]) -> tuple[bool, bool]:
    second = fact.get("second_consistent")
    return fact["consistent"], fact["consistent"] if second is None else second


class Disagreements:
    """Counter of how two verifiers judge the same facts, as rows are read."""

    def __init__(self, types: Sequence[str] = FACT_TYPES) -> None:
        self._pairs: dict[str, Counter[tuple[bool, bool]]] = {name: Counter() for name in types}
        self._unanswered: Counter[str] = Counter()

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one row of ``feedback/``."""
        for segment in row["segments"]:
            for fact in segment["facts"]:
                second = fact.get("second_consistent")
                if second is None:
                    self._unanswered[fact["type"]] += 1
                else:
                    self._pairs[fact["type"]][fact["consistent"], second] += 1

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
