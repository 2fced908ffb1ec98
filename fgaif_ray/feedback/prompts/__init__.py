"""Prompts are the text files beside this module, named with their version: a changed text is a new name.

A file holds an optional ``[system]`` part, a ``[user]`` part, and an optional ``[several]`` part that takes the place
of the latter where several images are shown; each is opened by that word alone on a line.
``{name}`` stands for a field; other braces are plain text. The system part of a prompt that extracts facts has fields
for the fact types of the run, and examples whose JSON lines give the facts by type; both are filled in when it is read.
"""

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Final

from fgaif_ray.errors import UserError
from fgaif_ray.fact_types import FactType, type_names
from fgaif_ray.records import FACT_TYPES

_FIELD = re.compile(r"\{([a-z_]+)\}")
_PART = re.compile(r"^\[(system|user|several)\]\n", re.MULTILINE)
_ANSWER = re.compile(r"^\{\".*\}$", re.MULTILINE)
_NUMBERS: Final = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Prompt:
    """A prompt with fields to fill in.

    Example: ``load_prompt("verify-v1").render(statement="There is a dog.")`` gives the text of one question.
    """

    name: str
    system: str | None
    user: str
    fact_types: tuple[str, ...]
    """The types that the answer of an extraction prompt lists, in this order; none of other prompts."""
    several: str | None = None
    """The user text about several images, where it is another one."""

    def about(self, images: int) -> "Prompt":
        """Return the prompt for a number of images, at least one."""
        return replace(self, user=self.several) if images > 1 and self.several is not None else self

    @functools.cached_property
    def fields(self) -> frozenset[str]:
        """Names of the fields of the user text."""
        return frozenset(self._pieces[1::2])

    @functools.cached_property
    def _pieces(self) -> list[str]:
        """Plain text and names of fields in turns, plain text first and last."""
        return _FIELD.split(self.user)

    def render(self, **fields: str) -> str:
        """Render the user text with every field replaced once; braces inside the values stay as they are.

        Args:
            fields: a value for every field of the user text; others are left unused.

        Raises:
            ValueError: a field has no value.
        """
        if missing := sorted(self.fields - fields.keys()):
            raise ValueError(f"prompt {self.name} needs a value for {', '.join(missing)}")
        pieces = self._pieces.copy()
        pieces[1::2] = [fields[name] for name in pieces[1::2]]
        return "".join(pieces)


def known_prompts() -> list[str]:
    """List the names of the packaged prompts, sorted."""
    names = (entry.name for entry in files(__name__).iterdir())
    return sorted(name.removesuffix(".txt") for name in names if name.endswith(".txt"))


def load_prompt(name: str, fact_types: Sequence[FactType] = ()) -> Prompt:
    """Read a prompt by its versioned name.

    Args:
        name: with the version, ``extract-v1``.
        fact_types: those that an extraction prompt asks for; other prompts need none.

    Raises:
        UserError: no prompt has this name, or it cannot explain these types.
        ValueError: an extraction prompt was given no types.
    """
    known = known_prompts()
    if name not in known:
        raise UserError(f"There is no prompt named {name!r}: use one of {', '.join(known)}.")
    text = (files(__name__) / f"{name}.txt").read_text(encoding="utf-8")
    _, *parts = _PART.split(text)
    bodies = dict(zip(parts[::2], (body.strip("\n") for body in parts[1::2]), strict=True))
    system = None if "system" not in bodies else _explain(bodies["system"], fact_types)
    several = bodies.get("several")
    prompt = Prompt(name, system, bodies["user"], type_names(fact_types), several)
    asks_for_facts = "segment" in prompt.fields or "segments_json" in prompt.fields
    if asks_for_facts and not fact_types:
        raise ValueError(f"prompt {name} asks for facts of types: name them")
    if asks_for_facts and prompt.fact_types != FACT_TYPES and "{kinds}" not in (bodies.get("system") or ""):
        raise UserError(
            f"Prompt {name} knows the types {', '.join(FACT_TYPES)} alone: use extract-v1 with other run.fact_types."
        )
    return prompt


def _explain(system: str, fact_types: Sequence[FactType]) -> str:
    """The system part for some types: what each means, and examples that list facts of each."""
    names = type_names(fact_types)
    count = len(names)

    def answer(facts: dict[str, list[str]]) -> str:
        return json.dumps({name: facts.get(name, []) for name in names}, ensure_ascii=False)

    own = "".join(
        f"\n[context: {json.dumps(one.context, ensure_ascii=False)}]\n"
        f"Sub-sentence: {json.dumps(one.segment, ensure_ascii=False)}\n"
        f"{answer({name: list(texts) for name, texts in one.facts})}\n"
        for fact_type in fact_types
        for one in fact_type.examples
    )
    fields = {
        "kinds": "\n".join(f'- "{one.name}": {one.definition}' for one in fact_types),
        "kind_count": _NUMBERS[count] if count < len(_NUMBERS) else str(count),
        "plural": "" if count == 1 else "s",
        "more_examples": own,
    }
    shown = _ANSWER.sub(lambda found: answer(json.loads(found[0])), system)
    pieces = _FIELD.split(shown)
    pieces[1::2] = [fields[name] for name in pieces[1::2]]
    return "".join(pieces)
