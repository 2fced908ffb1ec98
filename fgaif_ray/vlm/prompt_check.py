"""The prompts that an engine has read, compared with those that the checkpoint's own processor makes.

An engine expands images itself and says with each answer what it read. Where that differs from what the processor
makes, no answer is about the image that was shown, and none of them raises an error (verl issue 3469).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from fgaif_ray.errors import UserError
from fgaif_ray.prompts import shown_prompt
from fgaif_ray.vlm.front_end import SHOWN_PROMPT, FrontEnd

if TYPE_CHECKING:
    from PIL.Image import Image

COMPARED: Final = 32
"""Prompts of an engine that are compared. Each costs one more pass of the processor over its images, 2 to 66 ms of a
CPU for those of up to 1920 x 1080 pixels; an engine that reads so many, of different sizes, as the processor does is
taken to read all of them so."""


class PromptMismatchError(UserError):
    """An engine does not read a prompt as the checkpoint's processor makes it; nothing that it answers can be used."""


class PromptCheck:
    """The comparison of the first prompts that an engine answers; one belongs to one engine.

    Example::

        check = PromptCheck(front_end)
        check("'Describe this image.' about dog.jpg", "Describe this image.", [image], output.prompt_token_ids)
    """

    def __init__(self, front_end: FrontEnd, most: int = COMPARED) -> None:
        """Compare nothing yet.

        Args:
            front_end: made the prompts that the engine is given.
            most: prompts that are compared at most.
        """
        self._front_end = front_end
        self._left = most
        self._compared: set[tuple[str, tuple[tuple[int, int], ...]]] = set()
        self._mismatch: PromptMismatchError | None = None

    def __call__(self, row: str, prompt: str, images: "Sequence[Image]", engine_ids: Sequence[int] | None) -> None:
        """Compare a prompt, where neither it nor another one with its text and sizes of images has been compared.

        Args:
            row: what the error calls it.
            prompt: plain text or chat messages.
            images: as the engine was shown them.
            engine_ids: ``[prompt_tokens]`` that the engine read, images expanded.

        Raises:
            PromptMismatchError: they differ, or those of an earlier call did.
        """
        if self._mismatch is not None:
            raise self._mismatch
        key = prompt, tuple(image.size for image in images)
        if not self._left or key in self._compared:
            return
        own, theirs = self._front_end.encode_prompt(prompt, images).input_ids, tuple(engine_ids or ())
        if (position := first_difference(own, theirs)) is not None:
            self._mismatch = PromptMismatchError(
                f"{self._front_end.path}: the engine does not read {row} as the model's processor writes it, the token "
                f"ids differ from position {position} on ({len(theirs)} tokens in the engine, {len(own)} from the "
                f"processor): run `fgaif check-model {self._front_end.path}`, which says what to do."
            )
            raise self._mismatch
        self._left -= 1
        self._compared.add(key)


def first_difference(own: Sequence[int], theirs: Sequence[int]) -> int | None:
    """The first position, from 0, at which two sequences of token ids differ; None where they are equal."""
    shorter = min(len(own), len(theirs))
    different = next((place for place in range(shorter) if own[place] != theirs[place]), shorter)
    return different if different < max(len(own), len(theirs)) else None


def row_name(prompt: str, images: Sequence[str]) -> str:
    """What messages call a row: the beginning of its prompt, and its images.

    Args:
        prompt: plain text or chat messages.
        images: path or URI of each.
    """
    shown = shown_prompt(prompt)
    short = shown if len(shown) <= SHOWN_PROMPT else f"{shown[:SHOWN_PROMPT]}..."
    return f"{short!r} about {', '.join(images)}"
