"""What models see of transparent, deep and measured images: files that Pillow writes, opened as every stage does."""

import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support.image_files import encoded, one_row_png

from fgaif_ray.images import decode_image

WHITE = (255, 255, 255)
SCARLET = (200, 30, 10)


def pixels(data: bytes) -> list[Any]:
    """The first row."""
    image = decode_image(data)
    assert image.mode == "RGB"
    return [image.getpixel((column, 0)) for column in range(image.width)]


def row(values: Any, kind: Any) -> Image.Image:
    return Image.fromarray(np.array([values], dtype=kind))


def palette_row() -> Image.Image:
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, *SCARLET, 0, 0, 255])
    image.putdata([0, 1, 2])
    return image


# Transparency


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparent_parts_are_laid_on_white(kind: str) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    image = row([[*SCARLET, 0], [*SCARLET, 255]], np.uint8)
    assert pixels(encoded(image, kind, **options)) == [WHITE, SCARLET]


def test_half_transparent_parts_are_blended_with_white() -> None:
    assert pixels(encoded(row([[0, 0, 0, 128]], np.uint8))) == [(127, 127, 127)]


def test_grey_with_transparency_is_laid_on_white() -> None:
    image = Image.new("LA", (1, 1), (9, 0))
    assert pixels(encoded(image)) == [WHITE]


@pytest.mark.parametrize(
    "data",
    [
        encoded(palette_row(), transparency=0),
        encoded(palette_row(), transparency=bytes([0, 255, 255])),
        encoded(palette_row(), "GIF", transparency=0),
    ],
    ids=["png-one-colour", "png-alphas", "gif"],
)
def test_transparent_colours_of_a_palette_are_white(data: bytes) -> None:
    assert pixels(data) == [WHITE, SCARLET, (0, 0, 255)]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(row([7, 8], np.uint8), transparency=7), [WHITE, (8, 8, 8)]),
        (encoded(row([[1, 2, 3], SCARLET], np.uint8), transparency=(1, 2, 3)), [WHITE, SCARLET]),
        (encoded(row([257, 514], np.uint16), transparency=257), [WHITE, (2, 2, 2)]),
        (one_row_png(2, 4, 0, bytes([0x34]), struct.pack(">H", 3)), [WHITE, (68, 68, 68)]),
        (one_row_png(4, 2, 0, bytes([0b01_10_01_00]), struct.pack(">H", 1)), [WHITE, (170,) * 3, WHITE, (0, 0, 0)]),
        (one_row_png(8, 1, 0, bytes([0b01111111]), struct.pack(">H", 0)), [WHITE] * 8),
        (
            one_row_png(2, 16, 2, bytes([1, 0, 2, 0, 3, 0, 10, 0, 11, 0, 12, 0]), bytes([1, 0, 2, 0, 3, 0])),
            [WHITE, (10, 11, 12)],
        ),
    ],
    ids=["grey", "rgb", "16-bit-grey", "4-bit-grey", "2-bit-grey", "1-bit-grey", "16-bit-rgb"],
)
def test_the_transparent_colour_of_a_png_is_white(data: bytes, expected: list[Any]) -> None:
    assert pixels(data) == expected


# Depth


@pytest.mark.parametrize(("kind", "order"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")])
def test_16_bit_greys_keep_their_brightness(kind: str, order: str) -> None:
    image = Image.fromarray(np.array([[0, 257, 32896, 65535]]).astype(order))
    assert pixels(encoded(image, kind)) == [(grey,) * 3 for grey in (0, 1, 128, 255)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0.0, 0.5, 1.0], np.float32), [0, 128, 255]),
        (np.array([0.2, 0.4], np.float32), [51, 102]),
        (np.array([-3.0, 497.0, 997.0], np.float32), [0, 128, 255]),
        (np.array([np.nan, 10.0, 20.0, np.inf, -np.inf], np.float32), [0, 0, 255, 255, 0]),
        (np.array([7.0, 7.0], np.float32), [0, 0]),
        (np.array([np.nan], np.float32), [0]),
        (np.array([-(2**31), 2**31 - 1], np.int32), [0, 255]),
        (np.array([100_000, 200_000, 150_000], np.int32), [0, 255, 128]),
        (np.array([0, 1], np.int32), [0, 255]),
    ],
    ids=["0-to-1", "part-of-0-to-1", "range", "not-a-number", "flat", "nothing", "whole-int", "int-range", "int-mask"],
)
def test_measurements_are_scaled_to_their_range(values: NDArray[Any], expected: list[int]) -> None:
    assert pixels(encoded(Image.fromarray(values[None]), "TIFF")) == [(grey,) * 3 for grey in expected]


def test_cmyk_keeps_its_colours() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    [red, green, blue] = pixels(encoded(image, "JPEG", quality=95))[0]
    assert red > 200 and green < 60 and blue < 60
