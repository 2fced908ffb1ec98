"""Labels of novelty: which segments say again what their response has said."""

from collections.abc import Sequence

import pytest
from support.labelled import response

from fgaif_ray.config import NoiseConfig
from fgaif_ray.fact_types import BUILT_IN, DEFAULT
from fgaif_ray.fact_types.novelty import meaning_of
from fgaif_ray.feedback.overrides import Overrides
from fgaif_ray.feedback.verdicts import Labeller
from fgaif_ray.records import ABSENT, CONSISTENT, FACT_TYPES, HALLUCINATED, VerifiedFact, VerifiedSegment

TYPES = (*DEFAULT, BUILT_IN["novelty"])


def labels(*segments: Sequence[tuple[str, str]]) -> list[int | None]:
    """The novelty labels of segments with these facts (type, text)."""
    labeller = Labeller(dict.fromkeys(FACT_TYPES, 0.5), None, False, Overrides({}, NoiseConfig()), "{}", TYPES)
    verified = [
        VerifiedSegment(
            start=place,
            end=place + 1,
            text="x",
            facts=tuple(VerifiedFact(type=kind, text=text, p_consistent=0.1) for kind, text in facts),
        )
        for place, facts in enumerate(segments)
    ]
    return [one.labels["novelty"] for one in labeller.label(response("a", "x" * len(verified)), verified).segments]


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        ("existence", "There is a dog.", "A dog can be seen in the picture."),
        ("existence", "There are dogs.", "There is a dog."),
        ("attribute", "The dog is brown.", "There is a brown dog."),
        ("relation", "The cat is to the left of the dog.", "The dog is right of the cat."),
        ("relation", "A lamp is above the table.", "The table is below a lamp."),
    ],
)
def test_the_same_fact_in_other_words_is_the_same(kind: str, one: str, other: str) -> None:
    assert meaning_of(kind, one) == meaning_of(kind, other)


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        ("existence", "There is a dog.", "There is a cat."),
        ("attribute", "The dog is brown.", "The dog is black."),
        ("relation", "The cat is left of the dog.", "The dog is left of the cat."),
        ("relation", "The cat is left of the dog.", "The cat is above the dog."),
        ("relation", "The man holds the bag.", "The bag holds the man."),
    ],
)
def test_another_fact_is_another(kind: str, one: str, other: str) -> None:
    assert meaning_of(kind, one) != meaning_of(kind, other)


def test_the_same_words_of_another_type_are_another_fact() -> None:
    assert meaning_of("existence", "A dog.") != meaning_of("attribute", "A dog.")


def test_a_segment_repeats_when_all_its_facts_were_said() -> None:
    dog, brown, cat = ("existence", "There is a dog."), ("attribute", "The dog is brown."), ("existence", "A cat.")
    found = labels([dog, brown], [], [("existence", "A dog is here.")], [dog, cat], [cat, brown])
    assert found == [CONSISTENT, ABSENT, HALLUCINATED, CONSISTENT, HALLUCINATED]


def test_whether_a_fact_is_true_makes_no_difference() -> None:
    assert labels([("existence", "A dog.")], [("existence", "A dog.")]) == [CONSISTENT, HALLUCINATED]
