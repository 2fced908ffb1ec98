"""A photograph, and files as people have them of it.

``grace_hopper.jpg`` is the portrait of Rear Admiral Grace Hopper by the U.S. Navy (1984); it is in the public domain.
"""

from pathlib import Path
from typing import Any

from PIL import Image

PORTRAIT = Path(__file__).with_name("grace_hopper.jpg")
EXIF_ORIENTATION = 0x0112
ON_ITS_SIDE = 6
"""Of the EXIF tag: what a phone writes that was held upright."""


def write_photographs(folder: Path) -> list[Path]:
    """Write files of different shapes, sizes and formats into a folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(PORTRAIT) as opened:
        portrait = opened.convert("RGB")
    width, height = portrait.size
    turned = Image.Exif()
    turned[EXIF_ORIENTATION] = ON_ITS_SIDE
    cut_out = portrait.convert("RGBA")
    cut_out.putalpha(portrait.convert("L"))
    files: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "portrait.jpg": (portrait, {"quality": 90}),
        "landscape.jpg": (portrait.crop((0, height // 3, width, 2 * height // 3)), {}),
        "phone.jpg": (portrait.transpose(Image.Transpose.ROTATE_90).resize((1600, 1200)), {"exif": turned}),
        "thumbnail.webp": (portrait.resize((64, 75)), {}),
        "grey.jpg": (portrait.convert("L"), {}),
        "print.jpg": (portrait.resize((300, 351)).convert("CMYK"), {}),
        "cut-out.png": (cut_out.resize((256, 300)), {}),
    }
    for name, (image, options) in files.items():
        image.save(folder / name, **options)
    return [folder / name for name in files]
