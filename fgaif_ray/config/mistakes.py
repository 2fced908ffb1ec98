"""Messages about a wrong configuration: the key, the nearest one that exists, and where it was given."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError

Location = tuple[int | str, ...]

REMOVED_KEYS: Final = {
    "align.log_samples_every": "samples of every tenth step and of the last one are logged",
    "label.second_verifier.calibration.objective": "thresholds are calibrated for balanced accuracy",
    "label.second_verifier.calibration.per_type": "every fact type has a threshold of its own",
    "label.verifier.calibration.objective": "thresholds are calibrated for balanced accuracy",
    "label.verifier.calibration.per_type": "every fact type has a threshold of its own",
    "serve.batch_wait_timeout_s": "replicas wait 0.01 s for more to score together",
}
"""Keys of earlier versions, and their replacements."""


def describe_mistakes(
    error: ValidationError,
    model: type[BaseModel],
    source: str,
    overrides: Sequence[str],
    in_file: ValidationError | None,
) -> str:
    """Write one sentence about all mistakes, each with the file or the override that made it.

    Args:
        error: of the whole.
        model: that was validated.
        source: name of the file.
        overrides: what was changed, each as it was given, e.g. ``"--set align.steps=3"``.
        in_file: the error of the file without them, if it has one.
    """
    known = {_identity(item) for item in in_file.errors()} if in_file is not None else set()
    told: dict[str, list[str]] = {}
    for item in error.errors():
        blamed = source if not overrides or _identity(item) in known else _override_of(item["loc"], overrides)
        told.setdefault(blamed, []).append(_describe(item, model))
    return "; ".join(f"{blamed}: {'; '.join(problems)}" for blamed, problems in told.items()) + "."


def _identity(item: Any) -> tuple[Any, ...]:
    return item["loc"], item["type"], item["msg"]


def _override_of(location: Location, overrides: Sequence[str]) -> str:
    """The override that touches a place; all of them where the mistake lies in how keys go together."""
    place = [str(part) for part in location]
    touching = []
    for override in overrides:
        keys = override.removeprefix("--set ").partition("=")[0].split(".")
        if keys[: len(place)] == place or place[: len(keys)] == keys:
            touching.append(override)
    return " ".join(touching or overrides)


def _describe(item: Any, model: type[BaseModel]) -> str:
    location: Location = item["loc"]
    where = ".".join(str(part) for part in location)
    if item["type"] == "missing":
        return f"the key {where} is missing"
    if where in REMOVED_KEYS:
        return f"the key {where} no longer exists: leave it out ({REMOVED_KEYS[where]})"
    if item["type"] == "extra_forbidden":
        nearest = _nearest(location, model)
        return f"the key {where} is not known ({f'did you mean {nearest}?' if nearest else 'check its spelling'})"
    if item["type"] == "value_error":
        return str(item["msg"]).removeprefix("Value error, ")
    if item["type"] in ("model_type", "model_attributes_type"):
        return f"{where} is a section with keys of its own, not a value (got {item['input']!r})"
    return f"{where}: {item['msg'][0].lower()}{item['msg'][1:]} (got {item['input']!r})"


def _nearest(location: Location, model: type[BaseModel]) -> str | None:
    """The key that was probably meant: one of that name in another section, else one of this section spelt alike."""
    *above, name = (str(part) for part in location)
    keys = list(_keys(model))
    elsewhere = [key for key in keys if key[-1] == name]
    if len(elsewhere) == 1:
        return ".".join(elsewhere[0])
    siblings = {key[-1]: key for key in keys if list(key[:-1]) == above}
    alike = difflib.get_close_matches(name, siblings, n=1)
    return ".".join(siblings[alike[0]]) if alike else None


def _keys(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every key of a tree of sections."""
    for name, field in model.model_fields.items():
        yield (*above, name)
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _keys(kind, (*above, name))
