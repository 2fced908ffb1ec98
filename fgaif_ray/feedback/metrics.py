"""Metrics of a labelled set: counts, and agreement of the labels with a known truth."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fgaif_ray.records import AI, CLASS_NAMES, LABEL_SOURCES, Feedback
from fgaif_ray.statistics.agreement import agreement, balanced_accuracy_present

TrueLabels = Callable[[Feedback], Sequence[Mapping[str, int]] | None]
"""True label codes per fact type for each segment of a feedback row, or None where they are not known."""


class FeedbackMetrics:
    """Counter of feedback rows as they are read."""

    def __init__(self, types: Sequence[str], true_labels: TrueLabels | None = None) -> None:
        self._true_labels = true_labels
        self._types = types
        self._without_truth: set[str] = set()
        self._rows = 0
        self._segments = 0
        self._facts: Counter[str] = Counter()
        self._wrong_facts: Counter[str] = Counter()
        self._labels: dict[str, Counter[int]] = {name: Counter() for name in types}
        self._sources: dict[str, Counter[str]] = {name: Counter() for name in types}
        self._replaced: Counter[str] = Counter()
        self._masked: Counter[str] = Counter()
        self._pairs: dict[str, Counter[tuple[int, int]]] = {name: Counter() for name in types}

    def add(self, feedback: Feedback) -> None:
        """Count one row of ``feedback/``."""
        self._rows += 1
        truths = self._true_labels(feedback) if self._true_labels is not None else None
        for index, segment in enumerate(feedback.segments):
            self._segments += 1
            for fact in segment.facts:
                self._facts[fact.type] += 1
                self._wrong_facts[fact.type] += not fact.consistent
            for name in self._types:
                label = segment.labels[name]
                if label is None:
                    self._masked[name] += 1
                    continue
                self._labels[name][label] += 1
                self._sources[name][segment.label_sources[name] or AI] += 1
                self._replaced[name] += label != segment.ai_labels[name]
                if truths is not None and name not in truths[index]:
                    self._without_truth.add(name)
                elif truths is not None:
                    self._pairs[name][truths[index][name], label] += 1

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics, JSON-serialisable.

        ``label_sources`` says where the labels come from, ``labels_replaced`` how many differ from the AI's, and
        ``labels_masked`` how many are not to be used because two verifiers disagree; those are counted nowhere else.
        ``agreement`` is None where no truth is known, else per type whose truth is known the metrics of
        ``Agreement.to_dict`` over the three classes (``balanced_accuracy`` is the mean recall) and
        ``balanced_accuracy_present``: consistent against hallucinated, among the segments that hold a fact of the
        type by the truth and by the label.
        """
        return {
            "rows": self._rows,
            "segments": self._segments,
            "facts": {name: self._facts[name] for name in self._types},
            "facts_judged_wrong": {name: self._wrong_facts[name] for name in self._types},
            "labels": {
                name: {title: self._labels[name][code] for code, title in enumerate(CLASS_NAMES)}
                for name in self._types
            },
            "label_sources": {
                name: {source: self._sources[name][source] for source in LABEL_SOURCES} for name in self._types
            },
            "labels_replaced": {name: self._replaced[name] for name in self._types},
            "labels_masked": {name: self._masked[name] for name in self._types},
            "agreement": {
                name: _agreement(self._pairs[name].elements())
                for name in self._types
                if name not in self._without_truth
            }
            if self._true_labels is not None
            else None,
        }


def _agreement(pairs: Iterable[tuple[int, int]]) -> dict[str, Any]:
    pairs = list(pairs)
    found = agreement([truth for truth, _ in pairs], [label for _, label in pairs])
    return found.to_dict() | {"balanced_accuracy_present": balanced_accuracy_present(found.confusion)}
