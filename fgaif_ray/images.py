"""Opening of untrusted images, and display of images on pages."""

import base64
import io
import warnings
from collections import Counter
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps

from fgaif_ray import storage
from fgaif_ray.errors import UserError
from fgaif_ray.progress import say_once

MAX_PIXELS: Final = 64_000_000
"""Larger images are refused before they are decoded (a 69-byte PNG can claim 10,000 x 10,000 pixels)."""
MAX_ASPECT: Final = 100.0
IMAGE_FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""Formats that are decoded. Pillow knows more, and gives some of them (EPS) to an outside interpreter."""
SMALLEST_PHOTO: Final = 128
"""Pixels; images with no side as long are shown without loss and enlarged."""
IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


def decode_image(data: bytes) -> Image.Image:
    """Decode an image file in full to RGB: the first frame, upright as its EXIF says.

    Raises:
        ValueError: it is not an image, truncated, larger than MAX_PIXELS, or over MAX_ASPECT times as wide as high.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"the image has {width} x {height} pixels, more than {MAX_PIXELS} in all")
            if max(width, height) > MAX_ASPECT * min(width, height):
                raise ValueError(f"the image is {width} x {height} pixels, too narrow to be seen")
            image.load()
            upright = ImageOps.exif_transpose(image)
            return upright.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError, EOFError) as error:
        raise ValueError("the data are no readable image") from error


def load_image(path: str) -> Image.Image:
    """Open an image by path or URI as RGB.

    Raises:
        UserError: it cannot be read or is not a usable image.
    """
    try:
        return decode_image(storage.read_bytes(path))
    except OSError as error:
        raise UserError(f"Cannot read the image {path}: check that the file exists and may be read.") from error
    except ValueError as error:
        raise UserError(f"{path} is not a usable image: {error}; remove or replace it.") from error


def find_images(folder: str) -> list[str]:
    """List the image files under a folder, a local path or a URI, sorted by path.

    Raises:
        UserError: there is no such folder, or it has no image.
    """
    if not storage.is_folder(folder):
        raise UserError(f"The image folder {folder} does not exist: set data.path to a folder that holds images.")
    files = storage.list_files(folder)
    found = [uri for name, uri in files.items() if _is_image(name)]
    if not found:
        raise UserError(f"The image folder {folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    skipped = Counter(Path(name).suffix.lower() or "no suffix" for name in files if not _is_image(name))
    if skipped:
        kinds = ", ".join(f"{suffix} {count}" for suffix, count in skipped.most_common())
        say_once(f"{folder}: {skipped.total()} files are left out, as their names are not those of images ({kinds}).")
    return found


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def picture_url(image: Image.Image, largest_side: int) -> str:
    """Encode an image as a data URL: small ones as PNG, others as JPEG of at most ``largest_side`` pixels."""
    if max(image.size) < SMALLEST_PHOTO:
        return "data:image/png;base64," + base64.b64encode(encode_image(image, "PNG")).decode()
    reduced = image.copy()
    reduced.thumbnail((largest_side, largest_side))
    return "data:image/jpeg;base64," + base64.b64encode(encode_image(reduced, "JPEG")).decode()


def encode_image(image: Image.Image, kind: str) -> bytes:
    """Encode an image as a file of a format that Pillow knows, e.g. ``"PNG"``."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()
