"""The three disjoint sets of images of a run, and the prompts for each image.

What is asked about is an image, or several that are shown together: a tuple of paths. Rows that have an image in common
go into the same set.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fgaif_ray import storage
from fgaif_ray.config import Config, DataConfig
from fgaif_ray.errors import UserError
from fgaif_ray.progress import say_once
from fgaif_ray.records import images_key
from fgaif_ray.storage import stages

FEWEST_IMAGES: Final = 5

Images = tuple[str, ...]
"""Paths or URIs of the images of a prompt."""
AskedRow = tuple[Images, str | None, str | None]
"""Images, prompt and response."""


@dataclass(frozen=True, slots=True)
class ImageSets:
    """Disjoint lists of images: to sample and label, to align on, and to evaluate on.

    Example: ``ImageSets([("a.png",)], [("b.png", "c.png")], [("d.png",)])``
    """

    sample: list[Images]
    align: list[Images]
    evaluate: list[Images]
    prompts: Mapping[Images, tuple[str, ...]] | None = None
    """The source's prompts for each image; in the sample set, those without a response. None: ``data.prompts``."""
    provided: int = 0
    """Number of provided responses to images of the sample set."""
    provided_key: str = ""
    """A digest of those responses."""

    def questions(self, part: Sequence[Images], shared: Sequence[str]) -> Iterator[tuple[Images, str]]:
        """Yield the images of one set with their prompts: all of their own, else the shared ones in turn."""
        for index, images in enumerate(part):
            if self.prompts is None:
                yield images, shared[index % len(shared)]
            else:
                for prompt in self.prompts[images]:
                    yield images, prompt

    def names_of(self, part: Sequence[Images]) -> list[str | list[str]]:
        """Return what stands for the images of one set in the fingerprint of a stage."""
        return list(map(images_key, part))

    def prompts_of(self, part: Sequence[Images], shared: Sequence[str]) -> Sequence[Any]:
        """Return what the prompts of one set depend on, for the fingerprint of a stage."""
        return shared if self.prompts is None else [self.prompts[images] for images in part]


def may_replace_images(config: Config) -> bool:
    """Whether images of other settings may go: they cost little to make again, but finished responses name them."""
    return config.run.overwrite or storage.read_manifest(config.run.dir, stages.RESPONSES) is None


def cut(images: Sequence[Images], data: DataConfig, source: str) -> ImageSets:
    """Cut a list of images: the last are held out for evaluation, the first are sampled and labelled, and those in
    between serve PPO.

    Evaluation gets a fifth at most. Where there are too few images, sampling and PPO share what is left. Those that
    have an image in common count as one.

    Raises:
        UserError: there are too few images for three sets; ``source`` says where they come from.
    """
    groups = _groups(images)
    if len(groups) < FEWEST_IMAGES:
        kind = "images" if len(groups) == len(images) else "groups of images that have none in common"
        raise UserError(f"{source} holds {len(groups)} {kind}; give at least {FEWEST_IMAGES}.")
    train = len(groups) - min(data.evaluate_images, len(groups) // FEWEST_IMAGES)
    sampled = min(data.sample_images, max(train // 2, train - data.align_images))
    parts = (groups[:sampled], groups[sampled:train][: data.align_images], groups[train:])
    _say_what_is_missing([len(part) for part in parts], data, source)
    sample, align, evaluate = ([images for group in part for images in group] for part in parts)
    return ImageSets(sample, align, evaluate)


def _groups(images: Sequence[Images]) -> list[list[Images]]:
    """Put together what has an image in common, also by way of others; in the order in which images are first named."""
    group_of: dict[str, list[Images]] = {}
    for some in images:
        together: dict[int, list[Images]] = {}
        for image in some:
            if image in group_of:
                together[id(group_of[image])] = group_of[image]
        largest = max(together.values(), key=len, default=[])
        for group in together.values():
            if group is not largest:
                largest += group
        largest.append(some)
        changed = largest if len(together) > 1 else [some]
        group_of |= {image: largest for member in changed for image in member}
    place = {some: index for index, some in enumerate(images)}
    groups = {id(group): sorted(group, key=place.__getitem__) for group in group_of.values()}
    return sorted(groups.values(), key=lambda group: place[group[0]])


def _say_what_is_missing(counts: Sequence[int], data: DataConfig, source: str) -> None:
    """Fewer images than the configuration asks for are used as they are, but not without a word."""
    asked = {name: getattr(data, name) for name in ("sample_images", "align_images", "evaluate_images")}
    short = [f"{name} {got} of {asked[name]}" for name, got in zip(asked, counts, strict=True) if got < asked[name]]
    if short:
        say_once(f"{source} gives {sum(counts)} of {sum(asked.values())} images asked for ({', '.join(short)}).")


def cut_rows(rows: Iterable[AskedRow], data: DataConfig, source: str) -> ImageSets:
    """Cut rows of images, prompt and response, so that all rows with an image in common go into the same set.

    Images count in the order in which they are first named. Of a response only a digest is kept.

    Raises:
        UserError: the rows name too few images for three sets.
    """
    known: dict[Images, Images] = {}
    entries: list[tuple[Images, str | None, bytes | None]] = []
    for images, prompt, response in rows:
        answer = None if response is None else hashlib.sha256(response.encode()).digest()[:16]
        entries.append((known.setdefault(images, images), prompt, answer))
    sets = cut(list(known), data, source)
    sampled = set(sets.sample)
    prompts: dict[Images, tuple[str, ...]] = {
        images: () for part in (sets.sample, sets.align, sets.evaluate) for images in part
    }
    texts: dict[str, str] = {}
    given, key, own = 0, hashlib.sha256(), False
    for images, prompt, answer in entries:
        if images not in prompts:
            continue
        if answer is not None and images in sampled:
            given += 1
            named = "\0".join(images)
            key.update(hashlib.sha256(f"{named}\0{prompt}\0".encode() + answer).digest())
        elif prompt is not None and prompt not in prompts[images]:
            prompts[images] += (texts.setdefault(prompt, prompt),)
        own = own or prompt is not None
    return ImageSets(
        sets.sample, sets.align, sets.evaluate, prompts if own else None, given, key.hexdigest()[:16] if given else ""
    )
