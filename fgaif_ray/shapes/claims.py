"""Claims: atomic statements about a scene that are true or false."""

import random
from dataclasses import dataclass
from typing import Final

from fgaif_ray.shapes.scenes import COLORS, SHAPES, SIZES, Scene

RELATIONS: Final = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
OPPOSITE: Final = {"left": "right", "right": "left", "above": "below", "below": "above"}


def article(word: str) -> str:
    """The indefinite article of a word, ``"a"`` or ``"an"``."""
    return "an" if word[0] in "aeiou" else "a"


@dataclass(frozen=True, slots=True)
class Claim:
    """One atomic claim.

    Example: ``Claim("relation", "circle", "left", "square")`` is "The circle is to the left of the square.";
    ``value`` is a colour or size for attributes and a key of RELATIONS for relations; it is empty for existence.
    """

    type: str
    subject: str
    value: str = ""
    other: str = ""

    def statement(self) -> str:
        """The claim as one plain sentence, the form in which facts are extracted and verified."""
        if self.type == "existence":
            return f"There is {article(self.subject)} {self.subject}."
        if self.type == "attribute":
            return f"The {self.subject} is {self.value}."
        return f"The {self.subject} is {RELATIONS[self.value]} the {self.other}."

    def question(self) -> str:
        """The claim as a yes/no question in the form of POPE."""
        if self.type == "existence":
            return f"Is there {article(self.subject)} {self.subject} in the image?"
        if self.type == "attribute":
            return f"Is the {self.subject} {self.value} in the image?"
        return f"Is the {self.subject} {RELATIONS[self.value]} the {self.other} in the image?"

    def holds(self, scene: Scene) -> bool:
        """Tell whether the claim is true of the scene. A claim about an object that is not there is false."""
        subject = scene.find(self.subject)
        if subject is None or self.type == "existence":
            return subject is not None
        if self.type == "attribute":
            return self.value in (subject.color, subject.size)
        other = scene.find(self.other)
        return other is not None and {
            "left": subject.column < other.column,
            "right": subject.column > other.column,
            "above": subject.row < other.row,
            "below": subject.row > other.row,
        }.get(self.value, False)


def draw_claim(scene: Scene, kind: str, truth: bool, generator: random.Random) -> Claim:
    """Draw a true or a false claim of one type about the scene.

    False claims are of every kind that a describer makes: absent objects, wrong colours and sizes, reversed and
    sideways relations, and attributes or relations of absent objects.
    """
    present = [item.shape for item in scene.objects]
    absent = [shape for shape in SHAPES if shape not in present]
    subject = generator.choice(present)
    if kind == "existence":
        return Claim(kind, subject if truth else generator.choice(absent))
    if not truth and generator.random() < 0.15:
        subject = generator.choice(absent)
    item = scene.find(subject)
    if kind == "attribute":
        if truth:
            assert item is not None
            return Claim(kind, subject, generator.choice([item.color, item.size]))
        colors = [color for color in COLORS if item is None or color != item.color]
        sizes = [size for size in SIZES if item is None or size != item.size]
        return Claim(kind, subject, generator.choice(colors if generator.random() < 0.65 else sizes))
    candidates = [
        claim
        for other in present
        for value in RELATIONS
        if other != subject and (claim := Claim(kind, subject, value, other)).holds(scene) == truth
    ]
    if not candidates:  # a subject that is absent has no true relation: never asked for, see above
        raise ValueError(f"no {kind} claim with truth {truth} about {subject!r} in {scene}")
    if not truth and generator.random() < 0.1:
        return Claim(kind, subject, generator.choice(list(RELATIONS)), generator.choice(absent))
    return generator.choice(candidates)
