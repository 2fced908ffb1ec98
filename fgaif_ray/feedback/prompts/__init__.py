"""Prompts are the text files beside this module, named with their version: a changed text is a new name.

A file holds an optional ``[system]`` part and a ``[user]`` part, each opened by that word alone on a line.
``{name}`` stands for a field; other braces are plain text.
"""

import functools
import re
from dataclasses import dataclass
from importlib.resources import files

from fgaif_ray.errors import UserError

_FIELD = re.compile(r"\{([a-z_]+)\}")
_PART = re.compile(r"^\[(system|user)\]\n", re.MULTILINE)


@dataclass(frozen=True)
class Prompt:
    """A prompt with fields to fill in.

    Example: ``load_prompt("verify-v1").render(statement="There is a dog.")`` gives the text of one question.
    """

    name: str
    system: str | None
    user: str

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


def load_prompt(name: str) -> Prompt:
    """Read a prompt by its versioned name.

    Raises:
        UserError: no prompt has this name.
    """
    known = known_prompts()
    if name not in known:
        raise UserError(f"There is no prompt named {name!r}: use one of {', '.join(known)}.")
    text = (files(__name__) / f"{name}.txt").read_text(encoding="utf-8")
    _, *parts = _PART.split(text)
    bodies = dict(zip(parts[::2], (body.strip("\n") for body in parts[1::2]), strict=True))
    return Prompt(name=name, system=bodies.get("system"), user=bodies["user"])
