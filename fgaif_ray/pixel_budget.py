"""The pixel budget: how many pixels of an image every model of a run sees.

It is a budget on the image itself, since families of models name and count the options of their processors
differently: with it the engine, the learner, the verifier and the reward models see the same picture.
"""

import math
from dataclasses import dataclass
from typing import Final

MAX_PIXELS: Final = 64_000_000
"""Larger images are refused before they are decoded (a 69-byte PNG can claim 10,000 x 10,000 pixels)."""
SMALLEST_BUDGET: Final = 28 * 28
"""Pixels; below it some families see less than one patch."""


@dataclass(frozen=True, slots=True)
class PixelBudget:
    """The fewest and the most pixels of an image, width times height; None is no limit.

    Example: ``PixelBudget(max=1_003_520).size_of(4000, 3000)`` is ``(1156, 867)``
    """

    min: int | None = None
    max: int | None = None

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height that an image is scaled to; its own where it lies within the budget.

        Sides are whole pixels: rounded down where the image is scaled down, up where it is scaled up.
        """
        pixels = width * height
        if self.max is not None and pixels > self.max:
            return max(1, math.isqrt(self.max * width // height)), max(1, math.isqrt(self.max * height // width))
        if self.min is not None and pixels < self.min:
            return _root_above(self.min * width, height), _root_above(self.min * height, width)
        return width, height


def _root_above(numerator: int, denominator: int) -> int:
    """Return the smallest integer that is at least the square root of a positive fraction."""
    return math.isqrt((numerator - 1) // denominator) + 1


UNLIMITED: Final = PixelBudget()
"""Images keep their sizes."""
