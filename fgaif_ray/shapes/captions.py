"""Captions: how a scene is described, in varied English, with planted errors of the three types at set rates.

A caption is planned first (which objects, attributes and relations it states, and which of them wrongly) and phrased
afterwards. So the same phrases carry truths and errors, and only the image tells them apart.
"""

import random
from dataclasses import dataclass, field
from typing import Final

from fgaif_ray.shapes.claims import OPPOSITE, RELATIONS, article
from fgaif_ray.shapes.scenes import COLORS, SHAPES, SIZES, Scene, SceneObject

CAPTION_PROMPTS: Final = (
    "Describe this image in detail.",
    "What can you see in this picture?",
    "Please describe the image.",
    "Tell me what is shown here.",
)


@dataclass(frozen=True, slots=True)
class ErrorRates:
    """How often a caption is wrong, per opportunity.

    The systematic part (companions, default colours, the favoured side) makes greedy decoding hallucinate too; where
    its rate is below 1 the truth stays within the reach of sampling.
    """

    companion: float = 0.0
    """Claims an absent object that usually comes along with one that is there."""
    default_color: float = 0.0
    """Gives a shape its usual colour instead of its own."""
    favoured_side: float = 0.0
    """Says of two objects in different rows that the right one is on the left."""
    random_object: float = 0.0
    random_color: float = 0.0
    random_size: float = 0.0
    random_relation: float = 0.0
    any_relation: float = 0.0
    """States a relation that is drawn without looking, possibly of two objects that are level, or of an object with
    itself."""


NO_ERRORS: Final = ErrorRates()
POLICY_ERRORS: Final = ErrorRates(
    companion=0.92,
    default_color=0.3,
    favoured_side=0.85,
    random_object=0.02,
    random_color=0.0,
    random_size=0.0,
    random_relation=0.0,
)
COMPANIONS: Final = {"circle": "star", "square": "heart", "triangle": "diamond", "cross": "ring"}
DEFAULT_COLORS: Final = {"triangle": "red", "square": "blue", "star": "yellow"}

OBJECT_SAID: Final = 0.95
COLOR_SAID: Final = 0.85
SIZE_SAID: Final = 0.5
RELATION_SAID: Final = 0.75
ITSELF: Final = 0.2
"""Share of relations of an object with itself among those drawn without looking."""


@dataclass(slots=True)
class _Mention:
    shape: str
    color: str | None
    size: str | None
    relation: tuple[str, str, str] | None = field(default=None)  # subject, relation, other: said after this mention


def _say_color(item: SceneObject, rates: ErrorRates, generator: random.Random) -> str:
    default = DEFAULT_COLORS.get(item.shape)
    if default is not None and default != item.color and generator.random() < rates.default_color:
        return default
    if generator.random() < rates.random_color:
        return generator.choice([color for color in COLORS if color != item.color])
    return item.color


def _say_size(item: SceneObject, rates: ErrorRates, generator: random.Random) -> str:
    if generator.random() < rates.random_size:
        return generator.choice([size for size in SIZES if size != item.size])
    return item.size


def _say_relation(
    first: SceneObject, second: SceneObject, rates: ErrorRates, generator: random.Random
) -> tuple[str, str, str]:
    subject, other = (first, second) if generator.random() < 0.5 else (second, first)
    true_values = []
    if subject.column != other.column:
        true_values.append("left" if subject.column < other.column else "right")
    if subject.row != other.row:
        true_values.append("above" if subject.row < other.row else "below")
    value = generator.choice(true_values)
    # Only where above or below could be said as well, and mostly: greedy decoding would turn to those.
    if subject.column > other.column and subject.row != other.row and generator.random() < rates.favoured_side:
        value = "left"
    elif generator.random() < rates.random_relation:
        value = OPPOSITE[value]
    if rates.any_relation and generator.random() < rates.any_relation:
        value = generator.choice(list(RELATIONS))
        other = subject if generator.random() < ITSELF else other
    return subject.shape, value, other.shape


def _plan(scene: Scene, rates: ErrorRates, generator: random.Random) -> list[_Mention]:
    present = {item.shape for item in scene.objects}
    mentions: list[_Mention] = []
    invented: list[_Mention] = []  # said last: one that is not there must not be taken for the other of a relation
    previous: SceneObject | None = None

    def invent(shape: str) -> _Mention:
        color = DEFAULT_COLORS.get(shape) or generator.choice(COLORS)
        return _Mention(
            shape,
            color if generator.random() < COLOR_SAID else None,
            generator.choice(SIZES) if generator.random() < SIZE_SAID else None,
        )

    said = set(present)
    for item in scene.objects:
        if generator.random() > OBJECT_SAID:
            continue
        mention = _Mention(
            item.shape,
            _say_color(item, rates, generator) if generator.random() < COLOR_SAID else None,
            _say_size(item, rates, generator) if generator.random() < SIZE_SAID else None,
        )
        if previous is not None and generator.random() < RELATION_SAID:
            mention.relation = _say_relation(previous, item, rates, generator)
        mentions.append(mention)
        previous = item
        companion = COMPANIONS.get(item.shape)
        if companion is not None and companion not in said and generator.random() < rates.companion:
            invented.append(invent(companion))
            said.add(companion)
        elif len(said) < len(SHAPES) and generator.random() < rates.random_object:
            shape = generator.choice([shape for shape in SHAPES if shape not in said])
            invented.append(invent(shape))
            said.add(shape)
    return mentions + invented


def _noun_phrase(mention: _Mention) -> str:
    words = [word for word in (mention.size, mention.color, mention.shape) if word]
    return f"{article(words[0])} {' '.join(words)}"


_OPENINGS: Final = ("There is {}", "I can see {}", "The image shows {}", "{} is visible", "The picture contains {}")
_SECOND_OPENINGS: Final = ("there is also {}", "I can also see {}", "the scene also has {}")


def _adjectives(mention: _Mention) -> str:
    return " and ".join(word for word in (mention.color, mention.size) if word)


def _relation_sentence(relation: tuple[str, str, str], last: str, generator: random.Random) -> str:
    subject, value, other = relation
    name = "It" if subject == last and generator.random() < 0.4 else f"The {subject}"
    return f"{name} is {RELATIONS[value]} the {other}."


def _word(mentions: list[_Mention], generator: random.Random) -> str:
    sentences: list[str] = []
    index = 0
    while index < len(mentions):
        mention = mentions[index]
        following = mentions[index + 1] if index + 1 < len(mentions) else None
        opening = generator.choice(_OPENINGS)
        style = generator.random()
        if style < 0.25 and _adjectives(mention):
            bare = _noun_phrase(_Mention(mention.shape, None, None))
            name = "It" if generator.random() < 0.6 else f"The {mention.shape}"
            sentences.append(f"{opening.format(bare)}. {name} is {_adjectives(mention)}.")
        elif style < 0.5 and following is not None and mention.relation is None and following.relation is None:
            second = generator.choice(_SECOND_OPENINGS).format(_noun_phrase(following))
            sentences.append(f"{opening.format(_noun_phrase(mention))}, and {second}.")
            index += 1
        elif style < 0.75 and mention.relation is not None and mention.relation[0] == mention.shape:
            _, value, other = mention.relation
            sentences.append(f"{opening.format(_noun_phrase(mention))}, which is {RELATIONS[value]} the {other}.")
            index += 1
            continue
        else:
            sentences.append(f"{opening.format(_noun_phrase(mention))}.")
        if mention.relation is not None:
            sentences.append(_relation_sentence(mention.relation, mention.shape, generator))
        index += 1
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def write_caption(scene: Scene, rates: ErrorRates, generator: random.Random) -> str:
    """Describe a scene: objects in reading order, some attributes and relations, errors at the given rates."""
    mentions = _plan(scene, rates, generator)
    if not mentions:
        mentions = [_Mention(scene.objects[0].shape, None, None)]
    return _word(mentions, generator)
