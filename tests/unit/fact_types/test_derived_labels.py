"""A type whose labels are derived from the labelled segments of a response, without any call."""

from collections.abc import Sequence

from support.labelled import response

from fgaif_ray.config import NoiseConfig
from fgaif_ray.fact_types import DEFAULT, FactType, extracted, label_key
from fgaif_ray.feedback.overrides import Overrides
from fgaif_ray.feedback.verdicts import Labeller
from fgaif_ray.records import (
    ABSENT,
    CONSISTENT,
    FACT_TYPES,
    HALLUCINATED,
    Segment,
    VerifiedFact,
    VerifiedSegment,
)


def first_said(segments: Sequence[Segment]) -> list[int]:
    """Consistent where a segment's facts are new, hallucinated where they are not."""
    known: set[str] = set()
    codes = []
    for segment in segments:
        texts = {fact.text for fact in segment.facts}
        codes.append(ABSENT if not texts else HALLUCINATED if texts <= known else CONSISTENT)
        known |= texts
    return codes


NOVELTY = FactType(
    name="novelty",
    meaning="what was not said before",
    definition="",
    colour=("#0f766e", "#5eead4"),
    labels="derived",
    derive=first_said,
)


def segment(number: int, *facts: str) -> VerifiedSegment:
    found = tuple(VerifiedFact(type="existence", text=text, p_consistent=0.9) for text in facts)
    return VerifiedSegment(start=number, end=number + 1, text="x", facts=found)


def test_labels_are_derived_from_the_whole_response() -> None:
    thresholds = dict.fromkeys(FACT_TYPES, 0.5)
    labeller = Labeller(thresholds, None, False, Overrides({}, NoiseConfig()), "{}", (*DEFAULT, NOVELTY))
    segments = [segment(0, "A dog."), segment(1, "A dog."), segment(2)]
    labels = [one.labels for one in labeller.label(response("a", "xxx"), segments).segments]
    assert [one["novelty"] for one in labels] == [CONSISTENT, HALLUCINATED, ABSENT]
    assert list(labels[0]) == [*FACT_TYPES, "novelty"]


def test_a_derived_type_is_not_asked_about() -> None:
    assert extracted((*DEFAULT, NOVELTY)) == DEFAULT


def test_a_derived_type_keeps_the_verdicts_and_changes_the_labels() -> None:
    types = (*DEFAULT, NOVELTY)
    assert label_key(extracted(types)) == ()
    assert label_key(types) != ()
