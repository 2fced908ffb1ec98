"""Blind controls: what models are shown in place of images, to find out what is learnt without looking.

``swapped`` shows another image of the same set, ``blank`` a grey one of the same size. Models are shown images by path,
so a control puts other paths in their places, and whatever reads images stays as it is.
"""

import random
from collections.abc import Callable, Iterable
from typing import Final, Literal

from PIL import Image

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.images import encode_image, load_image
from fgaif_ray.records import fingerprint

Blindness = Literal["none", "swapped", "blank"]
Scope = Literal["rewards", "policy"]
SCOPES: Final[tuple[Scope, Scope]] = ("policy", "rewards")
BLANK_FOLDER: Final = "blank-images"
"""Folder of a run that holds the grey images."""
GREY: Final = (128, 128, 128)

Images = tuple[str, ...]
"""Paths or URIs of the images of a prompt."""
ShownImages = Callable[[Images], Images]
"""Gives the paths to read in place of those of the images of a prompt."""


class Blindfold:
    """Paths that are read in place of those of images.

    Equal images, seeds and sets give equal paths on every machine.

    Example: ``Blindfold("swapped", [("a.png",), ("b.png",)], 0, "runs/x").shown(("a.png",))`` is ``("b.png",)``.
    """

    def __init__(self, mode: Blindness, images: Iterable[Images], seed: int, run_dir: str) -> None:
        """Prepares without reading an image.

        Args:
            mode: what is shown.
            images: of the prompts that will be asked about; swapped ones come from among them.
            seed: of the run.
            run_dir: folder of the run, which keeps blank images.
        """
        self._mode, self._run_dir = mode, run_dir
        self._order = sorted({path for some in images for path in some}) if mode == "swapped" else []
        random.Random(fingerprint("swapped", seed)).shuffle(self._order)
        self._place = {path: place for place, path in enumerate(self._order)}
        self._blank: dict[str, str] = {}

    def shown(self, images: Images) -> Images:
        """The paths to read in place of the images of a prompt: as many, and none of them.

        An image that cannot be read stays: whoever reads it says so.

        Raises:
            UserError: there are too few other images.
        """
        if self._mode == "swapped":
            return self._others(images)
        return tuple(map(self._blank_of, images)) if self._mode == "blank" else images

    def _others(self, images: Images) -> Images:
        """The images that follow the first one in a random circle of all."""
        start = self._place[images[0]]
        circle = (self._order[(start + step) % len(self._order)] for step in range(1, len(self._order)))
        others = [path for path in circle if path not in images][: len(images)]
        if len(others) < len(images):
            raise UserError(
                "Images cannot be swapped where there are no others: give more images, or set data.blind to blank."
            )
        return tuple(others)

    def _blank_of(self, image: str) -> str:
        if image not in self._blank:
            try:
                width, height = load_image(image).size
            except UserError:
                return image
            uri = storage.join(self._run_dir, BLANK_FOLDER, f"{width}x{height}.png")
            if not storage.exists(uri):
                storage.write_bytes(uri, encode_image(Image.new("RGB", (width, height), GREY), "PNG"))
            self._blank[image] = uri
        return self._blank[image]


def blindfold(config: Config, scope: Scope, images: Iterable[Images]) -> Blindfold:
    """What ``data.blind`` shows the reward models, or the policy while it learns, in place of images."""
    mode: Blindness = getattr(config.data.blind, scope)
    return Blindfold(mode, images, config.run.seed, config.run.dir)
