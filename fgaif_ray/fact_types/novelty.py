"""Novelty: does a segment say something that the response has not said before?

Rewards for true segments alone are earned again by saying the same thing again. The labels need no call: they follow
from the facts that are extracted anyway. A segment repeats when all its facts were stated before in the response, in
whatever words: facts are compared by the words that carry their meaning, without articles, forms of "to be", plurals
and ways to say that something can be seen, and relations also from the other side ("left of" and "right of").

What is not found out: synonyms ("sofa" and "couch"), and what follows from earlier facts ("two dogs", then "a dog").
"""

import re
from collections.abc import Hashable, Sequence
from typing import Final

from fgaif_ray.fact_types.fact_type import FactType
from fgaif_ray.records import ABSENT, CONSISTENT, HALLUCINATED, NOVELTY_TYPE, Segment

WORD: Final = re.compile(r"\w+", re.UNICODE)
EMPTY_WORDS: Final = frozenset(
    {"a", "an", "the", "this", "that", "there", "here", "it", "its", "one", "with", "and", "also", "of", "in", "at"}
    | {"is", "are", "was", "were", "be", "been", "being", "has", "have", "had", "can", "could", "may", "seem", "seems"}
    | {"see", "seen", "appear", "appears", "visible", "shown", "image", "picture", "photo", "photograph", "scene"}
)
"""Words that make no difference between two facts."""
SIDES: Final = (
    (r"(?:to the |on the )?left of", r"(?:to the |on the )?right of"),
    (r"above|over|on top of", r"below|under|beneath|underneath"),
    (r"in front of", r"behind"),
)
"""Relations and the same from the other side."""


def said_before(segments: Sequence[Segment]) -> list[int]:
    """Label segments: ``CONSISTENT`` where a fact is new, ``HALLUCINATED`` where all were said, ``ABSENT`` without any.

    Args:
        segments: of one response, in order, with the facts that were extracted.
    """
    said: set[Hashable] = set()
    codes = []
    for segment in segments:
        meanings = {meaning_of(fact.type, fact.text) for fact in segment.facts}
        codes.append(ABSENT if not meanings else HALLUCINATED if meanings <= said else CONSISTENT)
        said |= meanings
    return codes


def meaning_of(fact_type: str, text: str) -> Hashable:
    """Equal for facts that say the same, as far as words tell.

    Example: "There is a red ball." and "A ball is red." as attributes; "The cat is left of the dog." and "The dog is to
    the right of the cat." as relations.
    """
    text = text.casefold()
    for number, (one, other) in enumerate(SIDES):
        found = re.search(rf"\b(?:({one})|(?:{other}))\b", text)
        if found:
            before, after = _content(text[: found.start()]), _content(text[found.end() :])
            return fact_type, number, *((before, after) if found.group(1) else (after, before))
    words = [_singular(word) for word in WORD.findall(text) if word not in EMPTY_WORDS]
    return (fact_type, *words) if fact_type == "relation" else (fact_type, frozenset(words))


def _content(text: str) -> frozenset[str]:
    return frozenset(_singular(word) for word in WORD.findall(text) if word not in EMPTY_WORDS)


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


NOVELTY: Final = FactType(
    name=NOVELTY_TYPE,
    meaning="what the response has not said before",
    definition="something that the response has not said before.",
    colour=("#0f766e", "#5eead4"),
    hot_keys="zxcv",
    labels="derived",
    derive=said_before,
    verdicts=("absent", "new", "repeats"),
)
