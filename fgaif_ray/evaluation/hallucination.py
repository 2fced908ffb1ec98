"""Hallucination rates and coverage of descriptions whose truth is known.

Saying less is the easy way to hallucinate less, so coverage, facts and words are reported beside every rate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fgaif_ray.records import ABSENT, FACT_TYPES, HALLUCINATED
from fgaif_ray.segments import split_segments
from fgaif_ray.shapes.oracle import label_claims, measure_coverage, read_claims
from fgaif_ray.shapes.scenes import Scene
from fgaif_ray.statistics.changes import CountedRows, estimate_changes
from fgaif_ray.statistics.intervals import estimate_ratios

RATES: Final = (*FACT_TYPES, "overall")
SINGLE_FIGURES: Final = (
    "coverage",
    "coverage_objects",
    "coverage_attributes",
    "facts_per_response",
    *(f"{kind}_per_response" for kind in FACT_TYPES),
    "words_per_response",
    "unreadable",
    "repetition",
    "unfinished",
)


@dataclass(frozen=True, slots=True)
class Description:
    """A response to a prompt that asks for a description.

    Example: ``Description("images/heldout-000007.png", scene, "There is a red star.", finished=True)``
    """

    image: str
    """Responses to one image share it: the intervals draw images."""
    scene: Scene
    response: str
    finished: bool
    """Whether the response stopped by itself, not at the limit of tokens."""


@dataclass(frozen=True, slots=True)
class SegmentVerdict:
    """A segment of a response, characters ``[start, end)``, with the truth's verdict."""

    start: int
    end: int
    labels: dict[str, int]
    """Fact type -> label code (0 absent, 1 consistent, 2 hallucinated)."""


def judge_segments(scene: Scene, response: str) -> list[SegmentVerdict]:
    """Judge each segment of a response by the truth."""
    spans = [(span.start, span.end) for span in split_segments(response)]
    claims = read_claims(response, spans)
    return [
        SegmentVerdict(start, end, label_claims(scene, segment_claims))
        for (start, end), segment_claims in zip(spans, claims, strict=True)
    ]


def count_response(description: Description) -> dict[str, tuple[int, int]]:
    """Count the part and the whole of each metric in one response.

    Keys are RATES and SINGLE_FIGURES. A rate counts hallucinated segments out of those that carry a fact of
    the type (``overall``: of any type). Coverage counts true objects, and their true attributes, that are stated out
    of those there are. It leaves out relations, so ``relation_per_response``, facts of that type, tells whether
    they are still stated. ``repetition`` counts statements that the response has made before, ``unreadable``
    segments without any statement, ``unfinished`` responses that ran into the limit of tokens.
    """
    scene, response = description.scene, description.response
    spans = [(span.start, span.end) for span in split_segments(response)]
    claims = read_claims(response, spans)
    labels = [label_claims(scene, segment_claims) for segment_claims in claims]
    counts = {}
    for kind in FACT_TYPES:
        codes = [segment_labels[kind] for segment_labels in labels]
        counts[kind] = (codes.count(HALLUCINATED), len(codes) - codes.count(ABSENT))
    counts["overall"] = (
        sum(HALLUCINATED in segment_labels.values() for segment_labels in labels),
        sum(any(segment_claims) for segment_claims in claims),
    )
    found = measure_coverage(scene, claims)
    facts = [claim for segment_claims in claims for claim in segment_claims]
    return counts | {
        "coverage": (found.objects_found + found.attributes_found, found.objects + found.attributes),
        "coverage_objects": (found.objects_found, found.objects),
        "coverage_attributes": (found.attributes_found, found.attributes),
        "facts_per_response": (len(facts), 1),
        **{f"{kind}_per_response": (sum(fact.type == kind for fact in facts), 1) for kind in FACT_TYPES},
        "words_per_response": (len(response.split()), 1),
        "unreadable": (sum(not segment_claims for segment_claims in claims), len(claims)),
        "repetition": (len(facts) - len(set(facts)), len(facts)),
        "unfinished": (int(not description.finished), 1),
    }


def count_descriptions(descriptions: Sequence[Description]) -> CountedRows:
    """Count RATES and SINGLE_FIGURES in each response."""
    rows = [count_response(description) for description in descriptions]
    return CountedRows(
        [description.image for description in descriptions],
        {name: [row[name][0] for row in rows] for name in (*RATES, *SINGLE_FIGURES)},
        {name: [row[name][1] for row in rows] for name in (*RATES, *SINGLE_FIGURES)},
    )


def count_lengths(responses: Sequence[str], images: Sequence[str], finished: Sequence[bool]) -> CountedRows:
    """Count what needs no truth: words, and responses that were cut at the limit."""
    ones = [1] * len(responses)
    parts = {
        "words_per_response": [len(response.split()) for response in responses],
        "unfinished": [int(not done) for done in finished],
    }
    return CountedRows(images, parts, dict.fromkeys(parts, ones))


def measure_counts(counts: CountedRows, seed: int = 0) -> dict[str, Any]:
    """Measure counted responses; the result is JSON-serialisable.

    Returns:
        ``responses``, each metric (RATES below ``hallucination_rate``), and ``intervals``: the 95 % interval
        ``[low, high]`` of each, in the same shape. A metric whose denominator is zero is None.
    """
    estimates = estimate_ratios(counts.clusters, counts.parts, counts.wholes, seed=seed)
    return {
        "responses": len(counts.clusters),
        **_shape({name: estimate.value for name, estimate in estimates.items()}),
        "intervals": _shape({name: estimate.bounds for name, estimate in estimates.items()}),
    }


def measure_changes(before: CountedRows, after: CountedRows, seed: int = 0) -> dict[str, Any]:
    """Measure what changed on the images that both have; the result is JSON-serialisable.

    Returns:
        Each metric in the shape of ``measure_counts``: its change as ``value`` and the paired 95 % ``interval``.
    """
    changes = estimate_changes(before, after, seed=seed)
    return _shape({name: estimate.to_dict() for name, estimate in changes.items()})


def measure_descriptions(descriptions: Sequence[Description], seed: int = 0) -> dict[str, Any]:
    """Measure a set of responses, see ``measure_counts``."""
    return measure_counts(count_descriptions(descriptions), seed)


def _shape(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Put the rates, where there are any, under one key."""
    rates = {name: value for name, value in figures.items() if name in RATES}
    others = {name: value for name, value in figures.items() if name not in RATES}
    return ({"hallucination_rate": rates} if rates else {}) | others
