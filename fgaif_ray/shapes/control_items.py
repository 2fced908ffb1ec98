"""Control items of the embedded world: claims about scenes whose truth is known."""

import hashlib
import random
from collections.abc import Mapping
from typing import Final

from fgaif_ray.audit.control_items import ControlItem
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.shapes.claims import draw_claim
from fgaif_ray.shapes.scenes import Scene

SCENES: Final = 64
"""Number of scenes of the control items, enough that two blocks seldom ask the same."""


def scene_control_items(truth: Mapping[str, Scene], seed: int) -> list[ControlItem]:
    """Draw a true and a false claim of each type about some of the scenes.

    Args:
        truth: the scene behind each image.
        seed: decides which scenes and claims.
    """
    ranked = sorted(truth, key=lambda image: hashlib.sha256(f"{seed}\n{image}".encode()).digest())
    generator = random.Random(seed)
    return [
        ControlItem(draw_claim(truth[image], name, consistent, generator).statement(), consistent, "scene", name, image)
        for image in ranked[:SCENES]
        for name in FACT_TYPES
        for consistent in (False, True)
    ]
