"""Hallucination rates and coverage of descriptions whose truth is known.

Saying less is the easy way to hallucinate less, so coverage, facts and words are reported beside every rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from fgaif_ray.records import ABSENT, FACT_TYPES, HALLUCINATED
from fgaif_ray.segments import split_segments
from fgaif_ray.shapes.oracle import label_claims, measure_coverage, read_claims
from fgaif_ray.shapes.scenes import Scene
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


def measure_descriptions(descriptions: Sequence[Description], seed: int = 0) -> dict[str, Any]:
    """Measure a set of responses; the result is JSON-serialisable.

    Returns:
        ``hallucination_rate`` (by RATES), each of SINGLE_FIGURES, ``responses``, and ``intervals``: the 95 % interval
        ``[low, high]`` of each, in the same shape. A metric whose denominator is zero is None.
    """
    rows = [count_response(description) for description in descriptions]
    names = (*RATES, *SINGLE_FIGURES)
    estimates = estimate_ratios(
        [description.image for description in descriptions],
        {name: [row[name][0] for row in rows] for name in names},
        {name: [row[name][1] for row in rows] for name in names},
        seed=seed,
    )
    return {
        "responses": len(rows),
        "hallucination_rate": {name: estimates[name].value for name in RATES},
        **{name: estimates[name].value for name in SINGLE_FIGURES},
        "intervals": {
            "hallucination_rate": {name: estimates[name].bounds for name in RATES},
            **{name: estimates[name].bounds for name in SINGLE_FIGURES},
        },
    }


def measure_lengths(responses: Sequence[str], images: Sequence[str], finished: Sequence[bool]) -> dict[str, Any]:
    """Measure without the truth: ``responses``, ``words_per_response``, ``unfinished`` and their ``intervals``."""
    ones = [1] * len(responses)
    estimates = estimate_ratios(
        images,
        {
            "words_per_response": [len(response.split()) for response in responses],
            "unfinished": [int(not done) for done in finished],
        },
        {"words_per_response": ones, "unfinished": ones},
    )
    return {
        "responses": len(responses),
        **{name: estimate.value for name, estimate in estimates.items()},
        "intervals": {name: estimate.bounds for name, estimate in estimates.items()},
    }
