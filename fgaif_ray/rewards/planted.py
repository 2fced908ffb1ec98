"""Planted repeats: responses made for types whose labels follow from the facts alone, such as novelty.

Few responses repeat themselves before alignment, and rewards for true statements make a policy look for just that. So a
head that has learnt from what was sampled hardly knows repeats when it is asked about them. Labels that are derived
from facts need neither a person nor a call nor the image; so more responses can be made of the pieces of those that
are labelled: the beginning of one, and then its own first segments again, or the opening of another response, which
says the same in other words, or something new. ``derive`` labels the result. As to all other types it is not learnt
from, since what is said of an image may be false of another one.
"""

import random
from collections.abc import Sequence
from typing import Final

from fgaif_ray.fact_types import FactType
from fgaif_ray.records import HALLUCINATED, Feedback, Segment
from fgaif_ray.rewards.data import TrainingResponse
from fgaif_ray.rewards.kinds import IGNORED

MOST_PLANTED: Final = 4
"""Segments that follow the beginning of a response."""
OPENINGS_TRIED: Final = 64
"""Openings of other responses that are looked at for one with the wanted label."""


def planted_responses(
    rows: Sequence[Feedback], fact_types: Sequence[FactType], share: float, seed: int
) -> list[TrainingResponse]:
    """Make responses with planted repeats.

    Only first segments are taken from other responses: later ones may speak of something by a pronoun.

    Args:
        rows: labelled responses to images of the training set.
        fact_types: all types of the run; without one that is derived nothing is made.
        share: planted responses per labelled one.
        seed: decides all choices.
    """
    derived = [one for one in fact_types if one.derive is not None]
    told = [row for row in rows if row.segments and any(segment.facts for segment in row.segments)]
    if not derived or not told:
        return []
    generator = random.Random(f"planted {seed}")
    openings = [row.segments[0] for row in told if row.segments[0].facts]
    made = []
    for row in generator.sample(told, min(len(told), round(share * len(told)))):
        begun = list(row.segments[: generator.randint(1, len(row.segments))])
        planted = _planted(begun, openings, derived[0], generator)
        segments = [*begun, *planted]
        labels = {one.name: (IGNORED,) * len(segments) for one in fact_types}
        labels |= {one.name: tuple(one.derive(segments)) for one in derived if one.derive is not None}
        made.append(
            TrainingResponse(
                images=row.response.images,
                image_sha256=row.response.image_sha256,
                prompt=row.response.prompt,
                segments=tuple(segment.text for segment in segments),
                labels=labels,
            )
        )
    return made


def _planted(
    begun: list[Segment], openings: Sequence[Segment], fact_type: FactType, generator: random.Random
) -> list[Segment]:
    """A run of the response's own first segments, or openings of others of which about half repeat."""
    if generator.random() < 0.5 or not openings:
        return begun[: generator.randint(1, min(len(begun), MOST_PLANTED))]
    assert fact_type.derive is not None
    found: list[Segment] = []
    for _ in range(generator.randint(1, MOST_PLANTED)):
        wants_repeat = generator.random() < 0.5
        tried = generator.sample(openings, min(len(openings), OPENINGS_TRIED))
        for opening in tried:
            if (fact_type.derive([*begun, *found, opening])[-1] == HALLUCINATED) == wants_repeat:
                found.append(opening)
                break
    return found
