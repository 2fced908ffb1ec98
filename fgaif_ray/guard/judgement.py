"""Verdicts on the segments of an answer, and their form in the guard's JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fgaif_ray.check.verdicts import hallucination_of, hallucination_score, verdict_of
from fgaif_ray.records import ABSENT, CLASS_NAMES, HALLUCINATED
from fgaif_ray.segments import Span
from fgaif_ray.serving.wire import ScoredResponse, TrainedOn

DIGITS: Final = 4
"""Decimal places of numbers in the guard's JSON."""
_NOTHING: Final = tuple(1.0 if code == ABSENT else 0.0 for code in range(len(CLASS_NAMES)))

Triple = Sequence[float]
"""P(absent), P(consistent), P(hallucinated)."""


@dataclass(frozen=True, slots=True)
class SegmentJudgement:
    """The verdicts on one segment, characters ``[start, end)`` of the answer."""

    text: str
    start: int
    end: int
    probabilities: Mapping[str, Triple]
    """By fact type."""
    reward: float

    @property
    def hallucination(self) -> float:
        """As ``check`` has it, and 0 where no type is about truth."""
        return hallucination_of(self.probabilities) or 0.0

    def to_json(self) -> dict[str, Any]:
        """The segment as the guard answers it."""
        types = {}
        for name, triple in self.probabilities.items():
            verdict, probability = verdict_of(name, triple)
            types[name] = {
                "verdict": verdict,
                "probability": round(probability, DIGITS),
                "hallucinated": round(triple[HALLUCINATED], DIGITS),
            }
        return {"text": self.text, "start": self.start, "end": self.end, "types": types}


@dataclass(frozen=True, slots=True)
class AnswerJudgement:
    """The verdicts on one answer."""

    segments: tuple[SegmentJudgement, ...]
    reward: float
    """As the reward service composes it."""
    out_of_domain: bool | None
    """Whether the images are far from what the reward models were trained on; None where the service does not say."""
    domain_distance: float | None = None
    """How far, in units of the distance at which they are out of domain."""
    coarse: bool = False
    """Whether there is one verdict for the whole answer, at its last segment."""
    trained_on: tuple[TrainedOn, ...] = ()
    """What the reward models were trained on."""

    @property
    def hallucination(self) -> float:
        """The score of the answer, as ``check`` has it."""
        return hallucination_score([segment.hallucination for segment in self.segments]) or 0.0

    @property
    def mean_reward(self) -> float:
        """Reward per segment; 0 without any."""
        return self.reward / len(self.segments) if self.segments else 0.0

    @property
    def trusted(self) -> bool:
        """Whether verdicts may change an answer: not where the models are known to be out of their depth."""
        return self.out_of_domain is not True


def read_judgement(
    scored: ScoredResponse, *, coarse: bool = False, trained_on: tuple[TrainedOn, ...] = ()
) -> AnswerJudgement:
    """Read the verdicts in an answer of the reward service; the rest is what its list of models says."""
    segments = tuple(
        SegmentJudgement(scored.response[one.start : one.end], one.start, one.end, one.probabilities, one.reward)
        for one in scored.segments
    )
    return AnswerJudgement(
        segments, scored.reward, scored.out_of_domain, scored.domain_distance, coarse=coarse, trained_on=trained_on
    )


def judge_spans(judged: AnswerJudgement, text: str, spans: Sequence[Span]) -> list[SegmentJudgement]:
    """Find the verdicts on parts of a text that may be cut otherwise than the reward service cuts it.

    Args:
        judged: of the text, or of its beginning that holds the spans.
        text: what the spans are parts of.
        spans: ends of segments are where a stream saw them.

    Returns:
        In order; where several segments share a span, each type has the triple that is surest of a hallucination.
    """
    found = []
    for span in spans:
        inside = [one for one in judged.segments if one.start < span.end and one.end > span.start]
        names = inside[0].probabilities if inside else dict.fromkeys(_names(judged), _NOTHING)
        triples = {
            name: max((one.probabilities[name] for one in inside), key=lambda one: one[HALLUCINATED], default=_NOTHING)
            for name in names
        }
        reward = sum(one.reward for one in inside)
        found.append(SegmentJudgement(text[span.start : span.end], span.start, span.end, triples, reward))
    return found


def _names(judged: AnswerJudgement) -> Sequence[str]:
    return tuple(judged.segments[0].probabilities) if judged.segments else ()


def judgement_json(
    judged: AnswerJudgement, cut: Sequence[Mapping[str, Any]] = (), note: str | None = None
) -> dict[str, Any]:
    """The field ``fgaif`` of a choice.

    Args:
        judged: the verdicts on the answer of the endpoint.
        cut: what was cut of it.
        note: for people.
    """
    return {
        "segments": [segment.to_json() for segment in judged.segments],
        "hallucination": round(judged.hallucination, DIGITS),
        "reward": round(judged.reward, DIGITS),
        "out_of_domain": judged.out_of_domain,
        "domain_distance": judged.domain_distance,
        "trained_on": [one.model_dump() for one in judged.trained_on],
        "cut": list(cut),
        "note": note,
    }


def unjudged_json(note: str) -> dict[str, Any]:
    """The field ``fgaif`` of a choice that was not judged, with the reason."""
    return {
        "segments": None,
        "hallucination": None,
        "reward": None,
        "out_of_domain": None,
        "domain_distance": None,
        "trained_on": [],
        "cut": [],
        "note": f"not judged: {note}",
    }
