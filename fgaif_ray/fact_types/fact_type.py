"""What a fact type is: its name, how it is explained and shown, and where its labels come from."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from fgaif_ray.records import CLASS_NAMES, Segment

NAME_PATTERN: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
COLOUR_PATTERN: Final = re.compile(r"#[0-9a-f]{6}", re.IGNORECASE)
_SEGMENT_FIELDS = ("start", "end", "token_end", "probabilities", "rewards", "reward")
_KEYS_BESIDE_TYPES = ("all", "overall", "mean", "missing_share", "response", "seed", "segments", "total")
_MODELS = ("coarse", "multitask", "shared", "other")
RESERVED_NAMES: Final = frozenset((*_SEGMENT_FIELDS, *_KEYS_BESIDE_TYPES, *_MODELS))
"""Names that mean something else wherever types are keys."""

LabelSource = Literal["facts", "derived"]
Derive = Callable[[Sequence[Segment]], Sequence[int]]
"""From the segments of one response, labelled as to the types that are extracted, to one label code for each."""


@dataclass(frozen=True, slots=True)
class FactExample:
    """A segment whose facts show an extraction model what a type means.

    Example: ``FactExample("Two cats sleep.", "Two cats sleep.", (("counting", ("There are two cats.",)),))``
    """

    context: str
    """The response that the segment belongs to."""
    segment: str
    facts: tuple[tuple[str, tuple[str, ...]], ...]
    """Facts by type; a type that is not named has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FactType:
    """A kind of atomic fact: a segment is absent, consistent or hallucinated as to each type.

    Raises:
        ValueError: a field cannot be used; the message names it.
    """

    name: str
    """The key in rows, configuration and answers: lower-case letters, digits and underscores."""
    title: str = ""
    """What people read; the name unless given."""
    meaning: str
    """A few words for pages: ``what is in the image``."""
    definition: str
    """How the extraction prompt explains the type, after its name and a colon."""
    examples: tuple[FactExample, ...] = ()
    """Added to those of the extraction prompt."""
    colour: tuple[str, str]
    """On a light and on a dark page, ``#rrggbb``."""
    hot_keys: str = ""
    """Label Studio's keys for right, wrong, unsure and nothing claimed; none unless given."""
    labels: LabelSource = "facts"
    """``facts``: extracted, verified, then labelled. ``derived``: ``derive`` makes the labels, without any call."""
    derive: Derive | None = None
    verdicts: tuple[str, str, str] = CLASS_NAMES
    """What people read of the three classes."""

    def __post_init__(self) -> None:
        if not self.title:
            object.__setattr__(self, "title", self.name)
        if not NAME_PATTERN.fullmatch(self.name):
            raise ValueError(f"name needs to be a word of a-z, 0-9 and _ (32 at most), not {self.name!r}")
        if self.name in RESERVED_NAMES:
            raise ValueError(f"name {self.name} means something else in rows and answers: take another one")
        for colour in self.colour:
            if not COLOUR_PATTERN.fullmatch(colour):
                raise ValueError(f"colour needs to be #rrggbb, not {colour!r}")
        if self.hot_keys and len(set(self.hot_keys)) != 4:
            raise ValueError(f"hot_keys needs to be four different characters, not {self.hot_keys!r}")
        if (self.labels == "derived") != (self.derive is not None):
            raise ValueError("labels and derive go together: a function where labels are derived, none elsewhere")


def extracted(fact_types: Sequence[FactType]) -> tuple[FactType, ...]:
    """The types whose facts are extracted and verified."""
    return tuple(one for one in fact_types if one.labels == "facts")


def type_names(fact_types: Sequence[FactType]) -> tuple[str, ...]:
    """Names in order, the order of every array with a dimension of types."""
    return tuple(one.name for one in fact_types)
