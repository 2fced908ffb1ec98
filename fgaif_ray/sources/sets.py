"""The three disjoint sets of images of a run, and the prompts for each image."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fgaif_ray import storage
from fgaif_ray.config import Config, DataConfig
from fgaif_ray.errors import UserError
from fgaif_ray.progress import say_once
from fgaif_ray.storage import stages

FEWEST_IMAGES: Final = 5


@dataclass(frozen=True, slots=True)
class ImageSets:
    """Disjoint lists of images: to sample and label, to align on, and to evaluate on.

    Example: ``ImageSets(["a.png"], ["b.png"], ["c.png"], {"a.png": (), "b.png": ("Why?",), "c.png": ("Who?",)}, 1)``
    """

    sample: list[str]
    """Paths or URIs."""
    align: list[str]
    evaluate: list[str]
    prompts: Mapping[str, tuple[str, ...]] | None = None
    """The source's prompts for each image; in the sample set, those without a response. None: ``data.prompts``."""
    provided: int = 0
    """Number of provided responses to images of the sample set."""
    provided_key: str = ""
    """A digest of those responses."""

    def questions(self, images: Sequence[str], shared: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yield the images of one set with their prompts: all of an image's own, else the shared ones in turn."""
        for index, image in enumerate(images):
            if self.prompts is None:
                yield image, shared[index % len(shared)]
            else:
                for prompt in self.prompts[image]:
                    yield image, prompt

    def prompts_of(self, images: Sequence[str], shared: Sequence[str]) -> Sequence[Any]:
        """Return what the prompts of one set depend on, for the fingerprint of a stage."""
        return shared if self.prompts is None else [self.prompts[image] for image in images]


def may_replace_images(config: Config) -> bool:
    """Whether images of other settings may go: they cost little to make again, but finished responses name them."""
    return config.run.overwrite or storage.read_manifest(config.run.dir, stages.RESPONSES) is None


def cut(images: list[str], data: DataConfig, source: str) -> ImageSets:
    """Cut a list of images: the last are held out for evaluation, the first are sampled and labelled, and those in
    between serve PPO.

    Evaluation gets a fifth at most. Where there are too few images, sampling and PPO share what is left.

    Raises:
        UserError: there are too few images for three sets; ``source`` says where they come from.
    """
    if len(images) < FEWEST_IMAGES:
        raise UserError(f"{source} holds {len(images)} images; give at least {FEWEST_IMAGES}.")
    train = len(images) - min(data.evaluate_images, len(images) // FEWEST_IMAGES)
    sampled = min(data.sample_images, max(train // 2, train - data.align_images))
    sets = ImageSets(images[:sampled], images[sampled:train][: data.align_images], images[train:])
    _say_what_is_missing(sets, data, source)
    return sets


def _say_what_is_missing(sets: ImageSets, data: DataConfig, source: str) -> None:
    """Fewer images than the configuration asks for are used as they are, but not without a word."""
    found = {
        "sample_images": (len(sets.sample), data.sample_images),
        "align_images": (len(sets.align), data.align_images),
        "evaluate_images": (len(sets.evaluate), data.evaluate_images),
    }
    short = [f"{name} {got} of {asked}" for name, (got, asked) in found.items() if got < asked]
    if short:
        got, asked = (sum(column) for column in zip(*found.values(), strict=True))
        say_once(f"{source} gives {got} of {asked} images asked for ({', '.join(short)}).")


def cut_rows(rows: Iterable[tuple[str, str | None, str | None]], data: DataConfig, source: str) -> ImageSets:
    """Cut rows of image, prompt and response, so that all rows of an image go into the same set.

    Images count in the order in which they are first named. Of a response only a digest is kept.

    Raises:
        UserError: the rows name too few images for three sets.
    """
    images: dict[str, str] = {}
    entries: list[tuple[str, str | None, bytes | None]] = []
    for image, prompt, response in rows:
        answer = None if response is None else hashlib.sha256(response.encode()).digest()[:16]
        entries.append((images.setdefault(image, image), prompt, answer))
    sets = cut(list(images), data, source)
    sampled = set(sets.sample)
    prompts: dict[str, tuple[str, ...]] = {
        image: () for part in (sets.sample, sets.align, sets.evaluate) for image in part
    }
    texts: dict[str, str] = {}
    given, key, own = 0, hashlib.sha256(), False
    for image, prompt, answer in entries:
        if image not in prompts:
            continue
        if answer is not None and image in sampled:
            given += 1
            key.update(hashlib.sha256(f"{image}\0{prompt}\0".encode() + answer).digest())
        elif prompt is not None and prompt not in prompts[image]:
            prompts[image] += (texts.setdefault(prompt, prompt),)
        own = own or prompt is not None
    return ImageSets(
        sets.sample, sets.align, sets.evaluate, prompts if own else None, given, key.hexdigest()[:16] if given else ""
    )
