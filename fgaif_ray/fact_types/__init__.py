"""Fact types: what kinds of claims are labelled, learnt, served and shown. They are data.

A run names its types in ``run.fact_types``: a name from ``BUILT_IN``, or the path of a YAML or JSON file with a type of
a person's own. All other packages iterate over the types they are given.

    run.fact_types -> extraction prompt and schema -> labels of feedback/ -> rewards/<type>/ -> service, align, report
"""

from collections.abc import Sequence
from typing import Any, Final

from fgaif_ray.errors import UserError
from fgaif_ray.fact_types.built_in import BUILT_IN
from fgaif_ray.fact_types.data_file import SUFFIXES, dump_fact_type, parse_fact_type, read_fact_type
from fgaif_ray.fact_types.fact_type import FactExample, FactType, extracted, type_names
from fgaif_ray.records import FACT_TYPES

__all__ = [
    "BUILT_IN",
    "DEFAULT",
    "SUFFIXES",
    "FactExample",
    "FactType",
    "choose",
    "colour_of",
    "dump_fact_type",
    "extracted",
    "label_key",
    "parse_fact_type",
    "read_fact_type",
    "style_variables",
    "type_names",
]

DEFAULT: Final = tuple(BUILT_IN[name] for name in FACT_TYPES)
"""The types of a run that names none."""


def choose(names: Sequence[str], fact_types: Sequence[FactType], folder: str) -> tuple[FactType, ...]:
    """The types of a folder that was written by an earlier job.

    Args:
        names: what the folder holds, in its order.
        fact_types: of the run.
        folder: for the message.

    Raises:
        UserError: the folder holds a type that the run does not have.
    """
    by_name = {one.name: one for one in fact_types}
    if unknown := [name for name in names if name not in by_name]:
        raise UserError(
            f"{folder} holds labels of the fact type {unknown[0]}, which run.fact_types does not have: use the "
            "configuration that it was made with, or make it again."
        )
    return tuple(by_name[name] for name in names)


def label_key(fact_types: Sequence[FactType]) -> tuple[Any, ...]:
    """What a fingerprint takes in: whatever decides the labels, and nothing where the types are the default ones."""
    if type_names(fact_types) == FACT_TYPES:
        return ()
    return ([[one.name, one.labels, one.definition, one.examples] for one in fact_types],)


def colour_of(name: str) -> str:
    """The CSS variable, without its dashes, that holds a type's colour."""
    return f"type-{name}"


def style_variables(fact_types: Sequence[FactType]) -> str:
    """CSS that defines the colour of each type, on light and on dark pages."""
    light, dark = (
        " ".join(f"--{colour_of(one.name)}: {one.colour[scheme]};" for one in fact_types) for scheme in (0, 1)
    )
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
