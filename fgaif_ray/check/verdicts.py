"""From the probabilities of a scored response to verdicts and one hallucination score."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from fgaif_ray.fact_types import BUILT_IN, FactType
from fgaif_ray.records import CLASS_NAMES, HALLUCINATED
from fgaif_ray.serving.wire import (
    CheckedResponse,
    CheckedSegment,
    ScoredResponse,
    SegmentReward,
    TrainedOn,
    TypeVerdict,
)


def hallucination_of(
    probabilities: Mapping[str, Sequence[float]], fact_types: Mapping[str, FactType] = BUILT_IN
) -> float | None:
    """The highest P(hallucinated) of a segment over the types that are about truth; None where none is.

    Types with derived labels, such as novelty, say nothing about truth.

    Args:
        probabilities: type -> ``[3]``.
        fact_types: what is known of them; one that is missing is about truth.
    """
    about_truth = (
        odds[HALLUCINATED]
        for name, odds in probabilities.items()
        if name not in fact_types or fact_types[name].labels == "facts"
    )
    return max(about_truth, default=None)


def hallucination_score(segments: Sequence[float | None]) -> float | None:
    """The score of a text with these ``hallucination_of``: it is as suspect as its worst segment, and no more.

    Returns:
        0 of an empty text; None where no type is about truth.
    """
    known = [one for one in segments if one is not None]
    return max(known, default=0.0) if len(known) == len(segments) else None


def verdict_of(name: str, odds: Sequence[float], fact_types: Mapping[str, FactType] = BUILT_IN) -> tuple[str, float]:
    """The likeliest class of a type, as people read it, and its probability."""
    likeliest = max(range(len(odds)), key=odds.__getitem__)
    words = fact_types[name].verdicts if name in fact_types else CLASS_NAMES
    return words[likeliest], odds[likeliest]


def check_response(
    scored: ScoredResponse,
    fact_types: Mapping[str, FactType],
    *,
    coarse: bool = False,
    trained_on: tuple[TrainedOn, ...] = (),
) -> CheckedResponse:
    """Read a scored response as a check.

    Args:
        scored: of the reward models.
        fact_types: what is known of its types; one that is missing is about truth.
        coarse: whether there is one verdict for the whole response, at its last segment.
        trained_on: what the reward models were trained on.
    """
    segments = [_checked(scored.response, segment, fact_types) for segment in scored.segments]
    chances = [segment.hallucination for segment in segments]
    score = hallucination_score(chances)
    known = [one for one in chances if one is not None]
    return CheckedResponse(
        response=scored.response,
        score=score,
        expected_share=None if score is None or coarse else fmean(known or [0.0]),
        segments=segments,
        model_version=scored.model_version,
        out_of_domain=scored.out_of_domain,
        domain_distance=scored.domain_distance,
        trained_on=trained_on,
    )


def reached(checked: CheckedResponse, threshold: float) -> bool:
    """Whether the hallucination score is at or above a threshold."""
    return checked.score is not None and checked.score >= threshold


def _checked(text: str, segment: SegmentReward, fact_types: Mapping[str, FactType]) -> CheckedSegment:
    types = {}
    for name, odds in segment.probabilities.items():
        verdict, probability = verdict_of(name, odds, fact_types)
        types[name] = TypeVerdict(verdict=verdict, probability=probability, probabilities=odds)
    return CheckedSegment(
        start=segment.start,
        end=segment.end,
        text=text[segment.start : segment.end].strip(),
        hallucination=hallucination_of(segment.probabilities, fact_types),
        types=types,
    )
