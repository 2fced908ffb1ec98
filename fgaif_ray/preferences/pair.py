"""Pairs of a better and a worse continuation of the same images, prompt and context."""

from dataclasses import dataclass
from typing import Final, Literal

from fgaif_ray.records import Response, fingerprint

Form = Literal["response", "segment"]
FORMS: Final[tuple[Form, ...]] = ("response", "segment")
"""``response``: whole responses; ``segment``: single segments after the same context."""
FORM_OF: Final[dict[str, Form]] = {"dpo": "response", "c-dpo": "segment"}
"""What an algorithm learns from."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """Part of a response, and what it is worth.

    Example: the second segment of "A dog. It is red." is ``Continuation(response, 7, 17, -1.0)``
    """

    response: Response
    start: int
    """First character in the response."""
    end: int
    """The character after its last one."""
    worth: float
    """In units of reward, by the labels (see ``worth.py``)."""

    @property
    def context(self) -> str:
        """What the response says before."""
        return self.response.text[: self.start]

    @property
    def text(self) -> str:
        """What it says, without the white space behind."""
        return self.response.text[self.start : self.end].rstrip()


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two continuations of the same images, prompt and context; both contexts read the same.

    Example: ``PreferencePair("segment", Continuation(one, 7, 17, 1.0), Continuation(other, 7, 21, -1.0))``
    """

    form: Form
    chosen: Continuation
    rejected: Continuation

    @property
    def images(self) -> tuple[str, ...]:
        """Paths or URIs, in the order of their places in the prompt."""
        return self.chosen.response.images

    @property
    def prompt(self) -> str:
        """Plain text or chat messages (``fgaif_ray.prompts``)."""
        return self.chosen.response.prompt

    @property
    def context(self) -> str:
        """What both responses have said before; empty for whole responses."""
        return self.chosen.context

    @property
    def margin(self) -> float:
        """How much more the chosen one is worth."""
        return self.chosen.worth - self.rejected.worth

    @property
    def pair_id(self) -> str:
        """Identity, 16 hex digits."""
        return fingerprint(
            self.form, self.chosen.response.sample_id, self.rejected.response.sample_id, self.chosen.start
        )
