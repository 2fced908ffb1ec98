"""Draws of pairs: the batch of each step, as a function of the seed and the step alone."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")


class PairPlan:
    """Order of draws: all pairs in a new random order in each round.

    A resumed run needs only its step to draw what an uninterrupted one would have drawn.
    """

    def __init__(self, count: int, seed: int) -> None:
        """Raises ValueError where there are no pairs."""
        if count < 1:
            raise ValueError("there are no pairs to draw from")
        self._count, self._seed = count, seed
        self._orders: dict[int, list[int]] = {}

    def draw(self, step: int, size: int) -> list[int]:
        """Draw the places of a step's pairs.

        Args:
            step: from 0.
            size: pairs of every step.
        """
        positions = (divmod(step * size + place, self._count) for place in range(size))
        return [self._order(round_number)[index] for round_number, index in positions]

    def _order(self, round_number: int) -> list[int]:
        if round_number not in self._orders:
            digest = hashlib.sha256(f"{self._seed}/pairs/{round_number}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:4]))
            order = torch.randperm(self._count, generator=generator).tolist()
            self._orders = {round_number: order, **{n: o for n, o in self._orders.items() if n == round_number - 1}}
        return self._orders[round_number]


def share_of(items: Sequence[Item], rank: int, workers: int) -> Sequence[Item]:
    """Return one learner worker's items of a step: every ``workers``-th."""
    return items[rank::workers]
