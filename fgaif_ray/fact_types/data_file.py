"""Fact types of a person's own: YAML or JSON files with the fields of ``FactType``. No code comes out of them."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

import yaml

from fgaif_ray.errors import UserError
from fgaif_ray.fact_types.fact_type import FactExample, FactType

SUFFIXES: Final = (".yaml", ".yml", ".json")
_REQUIRED: Final = ("name", "meaning", "definition", "colour")
_KNOWN: Final = tuple(field.name for field in fields(FactType) if field.name not in ("labels", "derive", "verdicts"))


def read_fact_type(path: str) -> FactType:
    """A fact type from its file.

    Raises:
        UserError: the file is missing, or a field is missing, unknown or cannot be used; the message names both.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not YAML or JSON"
        raise UserError(f"Cannot read the fact type {path}: {reason}.") from error
    try:
        return parse_fact_type(content)
    except ValueError as error:
        raise UserError(f"The fact type {path}: {error}.") from error


def parse_fact_type(content: Any) -> FactType:
    """A fact type from the content of its file.

    Raises:
        ValueError: a field is missing, unknown or cannot be used; the message names it.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"it needs the fields {', '.join(_REQUIRED)}")
    if missing := [name for name in _REQUIRED if name not in content]:
        raise ValueError(f"it needs the field {missing[0]}")
    if unknown := [str(name) for name in content if name not in _KNOWN]:
        raise ValueError(f"it has no field {unknown[0]} (there are {', '.join(_KNOWN)})")
    texts = {key: content[key] for key in _KNOWN if key in content and key not in ("colour", "examples")}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f"{key} needs to be text in quotes, not {text!r}")
    return FactType(**texts, colour=_colour(content["colour"]), examples=_examples(content.get("examples", [])))


def dump_fact_type(fact_type: FactType) -> dict[str, Any]:
    """The content of a file that ``parse_fact_type`` reads back to an equal type."""
    content = {key: value for key, value in asdict(fact_type).items() if key in _KNOWN}
    examples = [
        {"context": one.context, "segment": one.segment, "facts": {name: list(texts) for name, texts in one.facts}}
        for one in fact_type.examples
    ]
    return content | {"colour": dict(zip(("light", "dark"), fact_type.colour, strict=True)), "examples": examples}


def _colour(value: Any) -> tuple[str, str]:
    if isinstance(value, str):
        return value, value
    if not isinstance(value, Mapping) or set(value) != {"light", "dark"}:
        raise ValueError("colour needs to be '#rrggbb', or {light: '#rrggbb', dark: '#rrggbb'}")
    return str(value["light"]), str(value["dark"])


def _examples(value: Any) -> tuple[FactExample, ...]:
    if not isinstance(value, list):
        raise ValueError("examples needs to be a list")
    return tuple(_example(one) for one in value)


def _example(value: Any) -> FactExample:
    form = "an example needs segment, facts (by type, lists of sentences) and, where it is longer, context"
    if not isinstance(value, Mapping) or not {"segment", "facts"} <= set(value) <= {"context", "segment", "facts"}:
        raise ValueError(form)
    facts = value["facts"]
    if not isinstance(facts, Mapping) or not all(isinstance(texts, list) for texts in facts.values()):
        raise ValueError(form)
    by_type = tuple((str(name), tuple(map(str, texts))) for name, texts in facts.items())
    segment = str(value["segment"])
    return FactExample(str(value.get("context", segment)), segment, by_type)
