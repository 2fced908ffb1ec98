"""The page of all configuration keys: type, default and meaning, from the pydantic tree and its docstrings."""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fgaif_ray.config import Config, EngineConfig, LoRAOptions, PriceConfig, Section

SHARED: Final[dict[type[BaseModel], str]] = {
    EngineConfig: "An engine",
    LoRAOptions: "An adapter",
    PriceConfig: "A price",
}
"""Sections that stand in several places, with the heading under which their keys are told once."""
WORDS: Final[dict[Any, str]] = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    NoneType: "null",
    Any: "anything",
}
BOUNDS: Final = (
    (annotated_types.Ge, "ge", "≥"),
    (annotated_types.Gt, "gt", ">"),
    (annotated_types.Le, "le", "≤"),
    (annotated_types.Lt, "lt", "<"),
)
LARGEST_SHOWN: Final = 1 << 40
"""Bounds beyond it are those of the machine's integers."""
INTRODUCTION: Final = """\
# Configuration

A run is described by one YAML file: `fgaif COMMAND --config FILE`. Every key can also be given on the command line,
`--set align.steps=100`. An unknown key is an error that names the nearest one. `configs/` holds
[recipes](../models.md#recipes-and-their-memory).

This page is made from the code (`fgaif_ray/config/`).
"""


@dataclass(frozen=True, slots=True)
class Key:
    """A row of a table."""

    path: str
    kind: str
    default: str
    meaning: str


@cache
def field_docstrings(section: type[BaseModel]) -> dict[str, str]:
    """The string under each field of a section, those of its parents included, on one line."""
    found: dict[str, str] = {}
    for parent in reversed(section.__mro__):
        if not issubclass(parent, Section) or parent is Section:
            continue
        [tree] = ast.parse(inspect.getsource(parent)).body
        assert isinstance(tree, ast.ClassDef)
        for statement, following in zip(tree.body, tree.body[1:], strict=False):
            if not isinstance(statement, ast.AnnAssign) or not isinstance(following, ast.Expr):
                continue
            if isinstance(following.value, ast.Constant) and isinstance(following.value.value, str):
                found[ast.unparse(statement.target)] = " ".join(following.value.value.split())
    return found


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, also where it may be left out."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def describe_type(annotation: Any) -> str:
    """A type in words, such as ``whole number or null``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in WORDS:
        return WORDS[annotation]
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is Annotated:
        return describe_type(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(describe_type, arguments)))
    if origin in (tuple, list):
        return f"list of {describe_type(arguments[0])}"
    if origin is not None and issubclass(origin, dict):
        return f"{describe_type(arguments[1])} by {describe_type(arguments[0])}"
    if section_in(annotation) is not None:
        return "section"
    return "section" if isinstance(annotation, type) else "anything"


def describe_bounds(field: FieldInfo) -> str:
    """Its bounds, such as ``, ≥ 0, ≤ 1``."""
    limits = [
        (sign, getattr(bound, name)) for bound in field.metadata for kind, name, sign in BOUNDS if type(bound) is kind
    ]
    return "".join(f", {sign} {limit:,}" for sign, limit in limits if limit < LARGEST_SHOWN)


def describe_default(field: FieldInfo) -> str:
    """The default as YAML on one line."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    shown = text.strip().removesuffix("...").strip()  # scalars end as documents do
    return f"`{shown}`"


def keys_of(section: type[BaseModel], path: str) -> tuple[list[Key], list[tuple[str, type[BaseModel], bool]]]:
    """The keys of a section, and the sections below it: path, class, and whether it may be left out."""
    keys, below = [], []
    docstrings = field_docstrings(section)
    for name, field in section.model_fields.items():
        inner, own = section_in(field.annotation), f"{path}.{name}".removeprefix(".")
        if inner is None:
            kind = describe_type(field.annotation) + describe_bounds(field)
            keys.append(Key(own, kind, describe_default(field), docstrings.get(name, "")))
        else:
            below.append((own, inner, NoneType in get_args(field.annotation)))
    extra = section.__annotations__.get("__pydantic_extra__")  # a section for each fact type
    if extra is not None:
        below.append((f"{path}.TYPE", get_args(extra)[1], False))
    return keys, below


def walk(section: type[BaseModel] = Config, path: str = "") -> Iterator[Key]:
    """Every key of the tree, by its whole path."""
    keys, below = keys_of(section, path)
    yield from keys
    for own, inner, _ in below:
        yield from walk(inner, own)


def cell(text: str) -> str:
    """A docstring in a cell of a table, with the words of YAML."""
    return re.sub(r"\bNone\b", "`null`", text.replace("``", "`")).replace("|", "&#124;")


def table(keys: list[Key]) -> list[str]:
    """The table of some keys; empty without any."""
    if not keys:
        return []
    rows = [f"| `{key.path}` | {cell(key.kind)} | {cell(key.default)} | {cell(key.meaning)} |" for key in keys]
    return ["| key | type | default | meaning |", "|---|---|---|---|", *rows, ""]


def docstring_of(section: type[BaseModel]) -> str:
    """The docstring of a section, paragraph by paragraph."""
    return inspect.cleandoc(section.__doc__ or "").replace("``", "`")


def _sections(
    section: type[BaseModel], path: str, optional: bool, places: dict[type[BaseModel], list[str]]
) -> Iterator[str]:
    if section in SHARED:
        places.setdefault(section, []).append(path)
        return
    keys, below = keys_of(section, path)
    if path:
        yield from (f"{'##' if path.count('.') == 0 else '###'} {path}", "", docstring_of(section), "")
        if optional:
            yield from ("Left out by default (`null`).", "")
    yield from table(keys)
    named = [(own, SHARED[inner]) for own, inner, _ in below if inner in SHARED]
    shared = [f"`{own}`: [{heading.lower()}](#{slug(heading)})" for own, heading in named]
    if shared:
        yield from (f"With the keys of {', '.join(shared)}.", "")
    for own, inner, may_be_left_out in below:
        yield from _sections(inner, own, may_be_left_out, places)


def slug(heading: str) -> str:
    """The anchor of a heading."""
    return heading.lower().replace(" ", "-")


def configuration_page() -> str:
    """The page, as Markdown."""
    places: dict[type[BaseModel], list[str]] = {}
    lines = [INTRODUCTION, *_sections(Config, "", False, places)]
    for section, where in places.items():
        keys, _ = keys_of(section, "")
        lines += [f"## {SHARED[section]}", "", docstring_of(section), ""]
        lines += [f"Its keys stand below {', '.join(f'`{place}`' for place in where)}.", "", *table(keys)]
    return "\n".join(lines)
