"""Augmentation of rendered scenes: changes to an image that leave the truth about it as it is."""

import random
from typing import Final

import numpy as np
from PIL import Image

CONTRAST: Final = (0.5, 1.2)
BRIGHTNESS: Final = (-25.0, 45.0)
"""Added to every channel, of 255."""
NOISE: Final = (0.0, 8.0)
"""Standard deviation, of 255."""


def augment(image: Image.Image, key: str, share: float) -> Image.Image:
    """Change brightness and contrast, and add noise; hues and places stay, since the truth is about them.

    Args:
        image: RGB.
        key: equal keys draw equal changes, on every machine.
        share: probability that an image is changed at all; what a share changes, a larger one changes too.

    Raises:
        ValueError: the share is not inside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of augmented images must lie in [0, 1], not {share}")
    generator = random.Random(f"augment/{key}")
    if generator.random() >= share:
        return image
    pixels = np.asarray(image, dtype=np.float32)  # [height, width, 3]
    mean = pixels.mean()
    pixels = mean + (pixels - mean) * generator.uniform(*CONTRAST) + generator.uniform(*BRIGHTNESS)
    spread = generator.uniform(*NOISE)
    noise = np.random.default_rng(generator.getrandbits(32)).normal(0, spread, pixels.shape)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))
