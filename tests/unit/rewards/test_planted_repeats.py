"""Responses with planted repeats, from which a type with derived labels learns."""

from collections.abc import Sequence

import pytest
from support.labelled import feedback, segment_by_ai

from fgaif_ray.fact_types import BUILT_IN, DEFAULT
from fgaif_ray.fact_types.novelty import said_before
from fgaif_ray.records import ABSENT, CONSISTENT, FACT_TYPES, HALLUCINATED, Feedback, JudgedFact, Segment
from fgaif_ray.rewards.kinds import IGNORED
from fgaif_ray.rewards.planted import planted_responses

TYPES = (*DEFAULT, BUILT_IN["novelty"])
THINGS = ("dog", "cat", "ball", "lamp", "cup")
WAYS = ("There is a {}. ", "I can see a {}. ", "A {} is shown. ")


def says(text: str, *things: str) -> Segment:
    facts = tuple(
        JudgedFact(type="existence", text=f"There is a {thing}.", p_consistent=0.9, consistent=True) for thing in things
    )
    return segment_by_ai(text, (CONSISTENT if facts else ABSENT, ABSENT, ABSENT), facts=facts)


def rows() -> list[Feedback]:
    """Each of five openings in three wordings, followed by a greeting and another thing."""
    return [
        feedback(
            f"{place}-{number}",
            says(way.format(thing), thing),
            says("How nice! "),
            says(f"A {THINGS[place - 1]} too. ", THINGS[place - 1]),
        )
        for place, thing in enumerate(THINGS)
        for number, way in enumerate(WAYS)
    ]


def things_of(segments: Sequence[str]) -> list[set[str]]:
    return [{thing for thing in THINGS if thing in segment} for segment in segments]


def test_labels_say_what_has_been_said() -> None:
    made = planted_responses(rows(), TYPES, 1.0, seed=0)
    for one in made:
        said: set[str] = set()
        for things, label in zip(things_of(one.segments), one.labels["novelty"], strict=True):
            assert label == (ABSENT if not things else HALLUCINATED if things <= said else CONSISTENT)
            said |= things


def test_planted_segments_hold_repeats_in_the_same_and_in_other_words_and_news() -> None:
    known = {row.response.text for row in rows()}
    made = planted_responses(rows(), TYPES, 1.0, seed=0)
    repeats = [
        (segment in one.segments[:place], label)
        for one in made
        for place, (segment, label) in enumerate(zip(one.segments, one.labels["novelty"], strict=True))
        if place and not any(text.startswith("".join(one.segments[: place + 1])) for text in known)
    ]
    assert {(True, HALLUCINATED), (False, HALLUCINATED), (False, CONSISTENT)} <= set(repeats)


def test_what_is_said_of_the_image_is_not_learnt_from() -> None:
    for one in planted_responses(rows(), TYPES, 1.0, seed=0):
        assert all(set(one.labels[name]) == {IGNORED} for name in FACT_TYPES)


@pytest.mark.parametrize(("share", "made"), [(0.0, 0), (0.4, 6), (1.0, 15)])
def test_the_share_decides_how_many_are_made(share: float, made: int) -> None:
    assert len(planted_responses(rows(), TYPES, share, seed=0)) == made


def test_nothing_is_made_without_a_derived_type() -> None:
    assert planted_responses(rows(), DEFAULT, 1.0, seed=0) == []


def test_the_seed_decides_all() -> None:
    first, again, other = (planted_responses(rows(), TYPES, 1.0, seed) for seed in (1, 1, 2))
    assert first == again != other


def test_the_labels_are_those_of_the_type() -> None:
    (one, *_) = planted_responses(rows()[:1], TYPES, 1.0, seed=3)
    facts = {segment.text: segment for segment in rows()[0].segments}
    assert list(one.labels["novelty"]) == said_before([facts[text] for text in one.segments])
