"""Pictures and prompts that show whether a model's processor and an engine read the same."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from PIL import Image

from fgaif_ray.vlm.front_end import FrontEnd
from fgaif_ray.vlm.prompt_check import first_difference

IMAGE_SIZES: Final = ((56, 56), (336, 336), (640, 480), (480, 640), (1920, 400), (1920, 1080), (4000, 3000))
"""Width and height in pixels: from an icon to what a phone takes."""
PROBE_PROMPT: Final = "Describe this image in detail."
COARSE_PIXELS: Final = 16
"""Side of the patches of which probe images are made."""


class SelfCheckError(Exception):
    """Learner and engine do not agree; the message is a phrase that says in what, and what to do."""


def check_prompt_ids(front_end: FrontEnd, prompt: str, image: Image.Image, engine_ids: Sequence[int]) -> None:
    """Look whether an engine read the ids that the checkpoint's processor makes.

    Raises:
        SelfCheckError: it did not.
    """
    own = front_end.encode_prompt(prompt, [image]).input_ids
    if (position := first_difference(own, engine_ids)) is None:
        return
    raise SelfCheckError(
        f"of an image of {image.width} x {image.height} pixels the processor makes {len(own)} prompt tokens and the "
        f"engine {len(engine_ids)}, which differ from position {position} on: this version of vLLM reads the model in "
        "another way; try another version of vLLM or transformers"
    )


def probe_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Draw a picture of soft coloured patches."""
    generator = np.random.default_rng(seed)
    shape = (max(2, min(height, 512) // COARSE_PIXELS), max(2, min(width, 512) // COARSE_PIXELS), 3)
    coarse = Image.fromarray(generator.integers(0, 255, shape, dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def image_tokens(front_end: FrontEnd) -> dict[tuple[int, int], int]:
    """Count what images of ``IMAGE_SIZES`` take of a prompt, by width and height.

    Raises:
        ValueError: the processor does not take one of them.
    """
    found = {}
    for width, height in IMAGE_SIZES:
        try:
            found[width, height] = front_end.encode_prompt(PROBE_PROMPT, [probe_image(width, height)]).image_tokens
        except Exception as error:  # of the processor's: of any kind
            raise ValueError(f"the processor takes no image of {width} x {height} pixels: {error}") from error
    return found
