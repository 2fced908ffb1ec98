"""Cross-validation with whole images held out: what is fitted to an image says nothing about others like it."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def image_folds(images: Sequence[str], folds: int) -> NDArray[np.int64]:
    """The fold of each item, ``[items]`` from 0, by a hash of its image's name.

    Args:
        images: ``[items]`` the image that each is about.
        folds: how many at most; fewer images make fewer folds, so that none is empty.
    """
    names = sorted(set(images), key=lambda image: hashlib.sha256(image.encode()).hexdigest())
    fold_of = {image: place % min(folds, len(names)) for place, image in enumerate(names)}
    return np.array([fold_of[image] for image in images], dtype=np.int64)
