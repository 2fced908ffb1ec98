"""From the probabilities of a scored response to verdicts and one hallucination score."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from fgaif_ray.fact_types import FactType
from fgaif_ray.records import CLASS_NAMES, HALLUCINATED
from fgaif_ray.serving.wire import (
    CheckedResponse,
    CheckedSegment,
    Probabilities,
    ScoredResponse,
    SegmentReward,
    TrainedOn,
    TypeVerdict,
)


def check_response(
    scored: ScoredResponse,
    fact_types: Mapping[str, FactType],
    *,
    coarse: bool = False,
    trained_on: tuple[TrainedOn, ...] = (),
) -> CheckedResponse:
    """Read a scored response as a check.

    The score is the highest P(hallucinated) among segments and types, so a long text is as suspect as its worst
    segment, and no more. Types with derived labels, such as novelty, say nothing about truth and do not count.

    Args:
        scored: of the reward models.
        fact_types: what is known of its types; one that is missing is about truth.
        coarse: whether there is one verdict for the whole response, at its last segment.
        trained_on: what the reward models were trained on.
    """
    segments = [_checked(scored.response, segment, fact_types) for segment in scored.segments]
    chances = [segment.hallucination for segment in segments if segment.hallucination is not None]
    judged = len(chances) == len(segments)
    return CheckedResponse(
        response=scored.response,
        score=max(chances, default=0.0) if judged else None,
        expected_share=(fmean(chances) if chances else 0.0) if judged and not coarse else None,
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
    about_truth = [
        odds[HALLUCINATED]
        for name, odds in segment.probabilities.items()
        if name not in fact_types or fact_types[name].labels == "facts"
    ]
    return CheckedSegment(
        start=segment.start,
        end=segment.end,
        text=text[segment.start : segment.end].strip(),
        hallucination=max(about_truth, default=None),
        types={
            name: _verdict(odds, fact_types[name].verdicts if name in fact_types else CLASS_NAMES)
            for name, odds in segment.probabilities.items()
        },
    )


def _verdict(odds: Probabilities, names: Sequence[str]) -> TypeVerdict:
    likeliest = max(range(len(odds)), key=odds.__getitem__)
    return TypeVerdict(verdict=names[likeliest], probability=odds[likeliest], probabilities=odds)
