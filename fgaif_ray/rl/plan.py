"""Draws of a PPO step: its images and prompts.

The draw and the seed of every response are functions of the seed and the step alone, so a resumed run needs only its
step number to draw what an uninterrupted one would have drawn.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Draw:
    """One response to be sampled.

    Example: ``Draw("3-17", ("coco/000000000139.jpg",), "Describe this image in detail.", 2891336453)``
    """

    sample_id: str
    """Step and place in the step's batch."""
    images: tuple[str, ...]
    """Paths or URIs, shown together."""
    prompt: str
    seed: int
    """Seed of the sampling; 32 bits."""


def share_of(draws: Sequence[Draw], rank: int, workers: int, samples_per_prompt: int = 1) -> list[Draw]:
    """Return one learner worker's draws of a step: every ``workers``-th prompt with all its samples.

    The samples of a prompt stay together: their images are read once, and they share the prefix in an engine's cache.
    """
    return [draw for place, draw in enumerate(draws) if place // samples_per_prompt % workers == rank]


class PromptPlan:
    """Order of draws: all images in a new random order in each round, each with its next prompt every time.

    Images are shown one at a time, or several together; those that are shown together are drawn together.
    """

    def __init__(
        self,
        images: Sequence[tuple[str, ...]],
        prompts: Sequence[str],
        seed: int,
        own_prompts: Mapping[tuple[str, ...], Sequence[str]] | None = None,
    ) -> None:
        """Raises ValueError where there are no images or prompts; ``own_prompts`` of each image replace ``prompts``."""
        if not images or not prompts:
            raise ValueError("there are no images or no prompts to draw from")
        self._images, self._prompts, self._seed = list(images), list(prompts), seed
        self._own_prompts = own_prompts
        self._orders: dict[int, list[int]] = {}

    def draw(self, step: int, size: int, samples_per_prompt: int = 1) -> list[Draw]:
        """Draw the batch of one step; all batches have the same size.

        Args:
            step: from 0.
            size: responses.
            samples_per_prompt: responses to the same images and prompt, next to each other, each with its own seed.

        Raises:
            ValueError: the size is not a multiple of ``samples_per_prompt``.
        """
        prompts, rest = divmod(size, samples_per_prompt)
        if rest:
            raise ValueError(f"{size} responses are no multiple of {samples_per_prompt} per prompt")
        return [self._draw(step, place, step * prompts + place // samples_per_prompt) for place in range(size)]

    def generator(self, step: int, rank: int) -> torch.Generator:
        """Make the generator that decides the order of minibatches in one step of one learner process."""
        return torch.Generator().manual_seed(self._number("minibatches", step, rank))

    def _draw(self, step: int, place: int, position: int) -> Draw:
        round_number, index = divmod(position, len(self._images))
        number = self._order(round_number)[index]
        images = self._images[number]
        prompts = self._prompts if self._own_prompts is None else self._own_prompts[images]
        prompt = prompts[(number + round_number) % len(prompts)]
        return Draw(f"{step}-{place}", images, prompt, self._number("sample", step, place))

    def _order(self, round_number: int) -> list[int]:
        if round_number not in self._orders:
            generator = torch.Generator().manual_seed(self._number("order", round_number, 0))
            self._orders = {round_number: torch.randperm(len(self._images), generator=generator).tolist()} | {
                number: order for number, order in self._orders.items() if number == round_number - 1
            }
        return self._orders[round_number]

    def _number(self, purpose: str, *position: int) -> int:
        text = "/".join([str(self._seed), purpose, *map(str, position)])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
