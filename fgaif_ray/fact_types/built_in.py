"""The types that come with the project: those of FGAIF, section 3.2, and novelty."""

from types import MappingProxyType
from typing import Final

from fgaif_ray.fact_types.fact_type import FactType
from fgaif_ray.fact_types.novelty import NOVELTY

EXISTENCE: Final = FactType(
    name="existence",
    meaning="what is in the image",
    definition="an object, person, animal or text is in the image. One fact per thing, nothing but its presence. "
    'Form: "There is a dog."',
    colour=("#2f6fd0", "#6ea8ff"),
    hot_keys="1234",
)
ATTRIBUTE: Final = FactType(
    name="attribute",
    meaning="colour, number, size, material, state",
    definition="a property of one thing: colour, size, shape, material, number, state, action or posture that needs no "
    'second thing, words written on it. One property per fact. Form: "The dog is brown."',
    colour=("#c26100", "#f4a340"),
    hot_keys="qwer",
)
RELATION: Final = FactType(
    name="relation",
    meaning="where things are, and what they do to each other",
    definition="how two things stand to each other: position, contact, holding, wearing, looking at, an action of one "
    'on the other. Form: "The dog is to the left of the tree."',
    colour=("#8250df", "#b79bff"),
    hot_keys="asdf",
)

BUILT_IN: Final = MappingProxyType({one.name: one for one in (EXISTENCE, ATTRIBUTE, RELATION, NOVELTY)})
"""By name; a type that comes with the project is a line here."""
