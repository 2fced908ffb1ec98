"""Opening of untrusted images, and display of images on pages."""

import base64
import binascii
import io
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from fgaif_ray import storage
from fgaif_ray.errors import UserError
from fgaif_ray.pixel_budget import MAX_PIXELS, UNLIMITED, PixelBudget
from fgaif_ray.pixels import note_transparent_colour, to_rgb
from fgaif_ray.progress import say_once

MAX_ASPECT: Final = 100.0
IMAGE_FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""Formats that are decoded. Pillow knows more, and gives some of them (EPS) to an outside interpreter."""
SMALLEST_PHOTO: Final = 128
"""Pixels; images with no side as long are shown without loss and enlarged."""
IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
GAP: Final = 4
"""Pixels between images that are shown side by side."""
DRAFT_SIDES: Final = 2
"""A JPEG is decoded at a fraction of its size where that leaves so many times the sides that are wanted."""
MAX_DATA_URL_BYTES: Final = 32 << 20
"""Bytes of an image file in a data URL."""
MAX_IMAGE_FILE_BYTES: Final = 256 << 20
"""Bytes of an image file: MAX_PIXELS without compression, and room to spare."""
READERS: Final = 8
"""Images that are opened at a time: one of a bucket takes tens of milliseconds to come, and Pillow decodes beside."""
_DATA_URL: Final = re.compile(r"data:(?:image/[a-z0-9.+-]+)?(?:;[^,;]*)*?;base64,", re.IGNORECASE)
_FOREIGN: Final = {
    "AVIF": re.compile(rb".{4}ftyp(?:avi[fs]|m[is]f1.{0,64}?avi[fs])", re.DOTALL),
    "HEIC": re.compile(rb".{4}ftyp(?:hei[cxms]|hev[cxms]|m[is]f1)", re.DOTALL),
    "JPEG 2000": re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"),
    "PDF": re.compile(rb".{0,1000}%PDF-", re.DOTALL),
    "SVG": re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<svg\b|<(?:\?xml|!--|!doctype svg).{0,4000}<svg\b)", re.DOTALL | re.I),
}
"""Formats that people have and that are not decoded, by the start of their files."""


class TooManyPixelsError(ValueError):
    """An image has more pixels than are decoded."""


def decode_image(data: bytes, budget: PixelBudget = UNLIMITED) -> Image.Image:
    """Decode an image file in full to 8-bit RGB: the first frame, upright as its EXIF says, scaled to the budget.

    Transparent parts become white, and deeper pixels 8-bit ones (see ``fgaif_ray.pixels.to_rgb``).

    Args:
        data: the file.
        budget: the fewest and the most pixels; the aspect is kept.

    Raises:
        ValueError: it is not an image or of a format that is not read, truncated, larger than MAX_PIXELS, or over
            MAX_ASPECT times as wide as high.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = _opened(data, budget, IMAGE_FORMATS)
            image.load()
            picture = to_rgb(ImageOps.exif_transpose(image))
            size = budget.size_of(*picture.size)
            return picture if size == picture.size else picture.resize(size, Image.Resampling.LANCZOS)
    except (OSError, SyntaxError, Image.DecompressionBombError, EOFError) as error:
        raise ValueError(_reason(data)) from error


def pixels_to_decode(data: bytes, budget: PixelBudget, formats: tuple[str, ...]) -> int:
    """Return how many pixels ``decode_image`` decodes, without decoding any: fewer than the image has where its format
    can be reduced while it is opened.

    Raises:
        ValueError: as ``decode_image`` for what the beginning of the file shows; it is of none of the formats.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = _opened(data, budget, formats)
            return image.width * image.height
    except UnidentifiedImageError as error:
        raise ValueError(f"the image is none of {', '.join(formats)}") from error
    except (OSError, SyntaxError, Image.DecompressionBombError, EOFError) as error:
        raise ValueError(_reason(data)) from error


def _opened(data: bytes, budget: PixelBudget, formats: tuple[str, ...]) -> ImageFile:
    """Open a file, reduced where the format can be, without decoding it."""
    try:
        image = Image.open(io.BytesIO(data), formats=list(formats))
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError(f"the image has more than {MAX_PIXELS} pixels") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise TooManyPixelsError(f"the image has {width} x {height} pixels, more than {MAX_PIXELS} in all")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"the image is {width} x {height} pixels, too narrow to be seen")
    note_transparent_colour(image)
    draft_width, draft_height = budget.size_of(width, height)
    image.draft(None, (DRAFT_SIDES * draft_width, DRAFT_SIDES * draft_height))
    return image


def _reason(data: bytes) -> str:
    """Say why a file is not read."""
    for name, start in _FOREIGN.items():
        if start.match(data):
            return f"its format is {name}, which is not read: convert the image to JPEG or PNG"
    return "the data are no readable image"


def read_image_file(uri: str) -> bytes:
    """Read the file of an image, by path or URI, not more than MAX_IMAGE_FILE_BYTES of it.

    Raises:
        OSError: it cannot be read, or is not a regular file (a device or a pipe has no end).
        ValueError: it is larger.
    """
    data = storage.read_start(uri, MAX_IMAGE_FILE_BYTES + 1)
    if len(data) > MAX_IMAGE_FILE_BYTES:
        raise ValueError(f"the file is larger than {MAX_IMAGE_FILE_BYTES >> 20} MiB")
    return data


def load_image(path: str, budget: PixelBudget = UNLIMITED) -> Image.Image:
    """Open an image by path or URI as ``decode_image`` does.

    Raises:
        UserError: it cannot be read or is not a usable image.
    """
    try:
        return decode_image(read_image_file(path), budget)
    except OSError as error:
        reason = f" ({error})" if isinstance(error, storage.IrregularFileError) else ""
        raise UserError(f"Cannot read the image {path}{reason}: check that the file exists and may be read.") from error
    except ValueError as error:
        raise UserError(f"{path} is not a usable image: {error}; remove or replace it.") from error


def load_images(paths: Iterable[str], budget: PixelBudget = UNLIMITED) -> tuple[Image.Image, ...]:
    """Open the images of a prompt, in order; see ``load_image``.

    Raises:
        UserError: one of them cannot be read or is not a usable image.
    """
    return tuple(load_image(path, budget) for path in paths)


def open_images(paths: Iterable[str], budget: PixelBudget = UNLIMITED) -> dict[str, Image.Image | UserError]:
    """Open images as ``load_image`` does, each once and several at a time.

    Args:
        paths: paths or URIs.
        budget: of pixels of each.

    Returns:
        For each path the image, or why there is none.
    """

    def opened(path: str) -> Image.Image | UserError:
        try:
            return load_image(path, budget)
        except UserError as error:
            return error

    wanted = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(READERS, thread_name_prefix="images") as pool:
        return dict(zip(wanted, pool.map(opened, wanted), strict=True))


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


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Join the images of a prompt to one picture for people, from left to right, all of the height of the highest."""
    if len(images) == 1:
        return images[0]
    height = max(image.height for image in images)
    widths = [max(1, round(image.width * height / image.height)) for image in images]
    joined = Image.new("RGB", (sum(widths) + GAP * (len(images) - 1), height), "white")
    left = 0
    for image, width in zip(images, widths, strict=True):
        joined.paste(image.resize((width, height), Image.Resampling.LANCZOS), (left, 0))
        left += width + GAP
    return joined


def picture_url(image: Image.Image, largest_side: int) -> str:
    """Encode an image as a data URL: small ones as PNG, others as JPEG of at most ``largest_side`` pixels."""
    if max(image.size) < SMALLEST_PHOTO:
        return "data:image/png;base64," + base64.b64encode(encode_image(image, "PNG")).decode()
    reduced = image.copy()
    reduced.thumbnail((largest_side, largest_side))
    return "data:image/jpeg;base64," + base64.b64encode(encode_image(reduced, "JPEG")).decode()


def read_data_url(url: str) -> bytes:
    """Return the image file in a data URL.

    Raises:
        ValueError: it is not base64 of an image file, or of more than MAX_DATA_URL_BYTES.
    """
    start = _DATA_URL.match(url)
    if start is None:
        raise ValueError("the data URL does not begin like one of an image, data:image/png;base64,...")
    if len(url) - start.end() > MAX_DATA_URL_BYTES * 4 // 3 + 4:
        raise ValueError(f"the data URL holds more than {MAX_DATA_URL_BYTES >> 20} MiB")
    try:
        return base64.b64decode(url[start.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("the data URL is not valid base64") from error


def encode_image(image: Image.Image, kind: str) -> bytes:
    """Encode an image as a file of a format that Pillow knows, e.g. ``"PNG"``."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()
