"""Settings with one value for each fact type of the run: what is left out is filled in, what is unknown refused."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import Field

from fgaif_ray.fact_types import BUILT_IN
from fgaif_ray.records import FACT_TYPES

DEFAULT_THRESHOLD: Final = 0.5
DEFAULT_WEIGHT: Final = 1.0
_SETTINGS: Final[tuple[tuple[str, Any], ...]] = (
    ("label.verifier.threshold", DEFAULT_THRESHOLD),
    ("label.second_verifier.threshold", DEFAULT_THRESHOLD),
    ("label.noise", {}),
    ("align.reward.weights", DEFAULT_WEIGHT),
)
_OPTIONAL: Final = ("align", "reward")
"""Sections on the way to a setting that are there without being given."""


def by_type(value: float) -> Any:
    """A field whose default is the same value for each of the default types."""
    return Field(default_factory=lambda: dict.fromkeys(FACT_TYPES, value))


def expand(given: Any, names: Sequence[str], default: Any) -> Any:
    """One value for each type: a number stands for all of them, and a type without a value gets the default.

    A built-in type that is not among the run's is left out, so that a configuration can be run with fewer of them.
    """
    if isinstance(given, int | float) and not isinstance(given, bool):
        return dict.fromkeys(names, given)
    if not isinstance(given, Mapping):
        return given
    kept = {name: value for name, value in given.items() if name in names or name not in BUILT_IN}
    return dict.fromkeys(names, default) | kept


def complete(tree: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A copy of a YAML tree whose settings by type have a value for each type; what is not a mapping stays as it is."""
    completed = dict(tree)
    for path, default in _SETTINGS:
        *sections, key = path.split(".")
        node = _copied(completed, sections)
        if node is not None:
            node[key] = expand(node.get(key, {}), names, default)
    return completed


def _copied(tree: dict[str, Any], sections: Sequence[str]) -> dict[str, Any] | None:
    """The innermost of nested sections, all of them copied; None where one is not there."""
    for section in sections:
        child = tree.get(section, {} if section in _OPTIONAL else None)
        if not isinstance(child, Mapping):
            return None
        tree[section] = dict(child)
        tree = tree[section]
    return tree


def check_names(settings: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> None:
    """Make sure that settings by type name exactly the run's types.

    Args:
        settings: by their path in the configuration.
        names: of the run's types.

    Raises:
        ValueError: a type is missing or is not one of the run's; the message names the key.
    """
    for path, values in settings.items():
        if unknown := [name for name in values if name not in names]:
            raise ValueError(f"the key {path}.{unknown[0]} is not known: run.fact_types has {', '.join(names)}")
        if missing := [name for name in names if name not in values]:
            raise ValueError(f"the key {path}.{missing[0]} is missing: run.fact_types has {', '.join(names)}")
