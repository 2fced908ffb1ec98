"""What becomes of the pixels of an opened image: 8-bit RGB, on white where they are transparent."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

SIXTEEN_BIT: Final = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
MEASUREMENTS: Final = frozenset({"I", "F"})
"""32-bit integers and floats: their range is not said anywhere."""
_WIDENED: Final = {"L;2": 85, "L;4": 17}
"""Grey values of fewer bits are multiplied by this when they are read."""


def note_transparent_colour(image: ImageFile) -> None:
    """Make the transparent colour of an opened PNG, which is noted in the file's own depth, one of its pixels' depth.

    It has to be called before the pixels are read: how deep they are in the file is forgotten then.
    """
    colour = image.info.get("transparency")
    mode = image.tile[0].args if image.format == "PNG" and image.tile else None
    if isinstance(colour, int) and mode in _WIDENED:
        image.info["transparency"] = colour * _WIDENED[str(mode)]
    elif isinstance(colour, tuple) and mode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a picture as 8-bit RGB.

    Transparent parts are laid on white. 16-bit greys are divided by 257, so that white stays white. 32-bit integers
    and floats are taken as 0 (black) to 1 (white) if all of them lie there; otherwise black is their minimum and
    white their maximum, and what is not a number is black.
    """
    if image.mode in SIXTEEN_BIT:
        return _without_colour(_sixteen_bit_greys(image), image)
    if image.mode in MEASUREMENTS:
        return Image.fromarray(_measured_greys(np.asarray(image))).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    return _on_white(image.convert("RGBA"))


def _on_white(image: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=image)
    return canvas


def _sixteen_bit_greys(image: Image.Image) -> NDArray[np.uint8]:
    return ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)


def _without_colour(greys: NDArray[np.uint8], image: Image.Image) -> Image.Image:
    """Grey values as RGB, white where the image has its transparent colour."""
    colour = image.info.get("transparency")
    if isinstance(colour, int):
        greys[np.asarray(image) == colour] = 255
    return Image.fromarray(greys).convert("RGB")


def _measured_greys(measured: NDArray[Any]) -> NDArray[np.uint8]:
    values = measured.astype(np.float64)
    known = values[np.isfinite(values)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    values -= low
    values *= 255 / ((high - low) or 1.0)
    np.nan_to_num(values, copy=False, nan=0.0)
    greys: NDArray[np.uint8] = np.rint(values.clip(0, 255)).astype(np.uint8)
    return greys
