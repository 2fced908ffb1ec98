"""Control items: facts whose truth is known, asked beside those of a response, to measure false accepts.

A fact is known to be false where it contradicts itself (``texts-v1.txt``; ``texts-any-v1.txt`` does without the words
"the image", where responses may be about several), where the scene behind the image says so (in
the embedded world), or where a person says so (``label.control_items.path``). Half of the false ones come with an order
to say yes, as a text in a response or an image might give one. As many known-true facts show that a judge which rejects
the false ones does not reject everything.

Folder, metric and key of the results still have their first names, ``canaries`` and ``gullibility``.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any, Final, Literal

from fgaif_ray import storage
from fgaif_ray.audit.control_items.asked import AskedControlItem
from fgaif_ray.audit.labelled_facts import read_control_facts
from fgaif_ray.config import ControlItemConfig
from fgaif_ray.errors import UserError
from fgaif_ray.statistics.intervals import wilson_interval

TEXTS: Final = "texts-v1.txt"
TEXTS_OF_SEVERAL: Final = "texts-any-v1.txt"

ControlItemKind = Literal["text", "scene", "given"]
_PART = re.compile(r"^\[(false|true|orders)\]$", re.MULTILINE)
_FACT: Final = "{fact}"


@dataclass(frozen=True, slots=True)
class ControlItem:
    """A fact whose truth is known.

    Example: ``ControlItem("The red thing is not red.", False, "text")``
    """

    text: str
    consistent: bool
    kind: ControlItemKind
    type: str | None = None
    image: str | None = None
    """Path or URI; None where the truth holds for every image."""
    injected: bool = False
    """Whether an order to say yes comes with it."""
    more_images: tuple[str, ...] = ()
    """Those after the first, where the fact is about several."""

    @property
    def images(self) -> tuple[str, ...]:
        """Path or URI of each; none where the truth holds for every image."""
        return () if self.image is None else (self.image, *self.more_images)

    def asked(self, p_consistent: float | None) -> AskedControlItem:
        """Return its row with the verifier's answer, P(yes), or None where it cannot be asked about."""
        assert self.image is not None  # drawn for a block, it has one
        return AskedControlItem(
            image=self.image,
            more_images=self.more_images,
            text=self.text,
            kind=self.kind,
            type=self.type,
            consistent=self.consistent,
            injected=self.injected,
            p_consistent=p_consistent,
        )


@dataclass(frozen=True, slots=True)
class ControlItemPool:
    """The pool from which blocks draw their control items."""

    control_items: tuple[ControlItem, ...]
    orders: tuple[str, ...]
    """Texts with ``{fact}``."""
    per_block: int

    def draw(self, block: str, images: Sequence[str]) -> list[ControlItem]:
        """Draw the control items of a block; equal blocks get equal ones.

        Args:
            block: its name.
            images: of the block, for facts that are about any image; without any, such facts are left out. Images that
                are shown together have one name.

        Returns:
            ``per_block`` false ones, every other with an order to say yes, and as many true ones, each with an image.
        """
        drawn = []
        for consistent in (False, True):
            fitting = [c for c in self.control_items if c.consistent == consistent and (c.image is not None or images)]
            fitting.sort(key=lambda item: _hash(block, *(item.images or ("",)), item.text))
            for index, item in enumerate(fitting[: self.per_block]):
                seed = _hash(block, item.text)
                image = item.image if item.image is not None else images[seed % len(images)]
                ordered = not consistent and index % 2 == 1 and bool(self.orders)
                text = self.orders[seed % len(self.orders)].replace(_FACT, item.text) if ordered else item.text
                drawn.append(replace(item, text=text, image=image, injected=ordered))
        return drawn


def load_control_items(
    config: ControlItemConfig,
    types: Sequence[str],
    known: Sequence[ControlItem] = (),
    images_per_prompt: int = 1,
) -> ControlItemPool:
    """Load the control items of a run: a person's own, and those of known scenes or else texts that fit every image.

    Args:
        config: names the files.
        known: about images whose truth is known.
        types: the fact types that those of a person can have.
        images_per_prompt: the most images that a fact is about.

    Raises:
        UserError: a file cannot be read or is not of the form, or a fact is about more images.
    """
    if not config.per_block:
        return ControlItemPool((), (), 0)
    texts, orders = _read_texts(config.texts, TEXTS if images_per_prompt == 1 else TEXTS_OF_SEVERAL)
    control_items: list[ControlItem] = []
    if config.path is not None:
        given = read_control_facts(config.path, types)
        missing = next((image for fact in given for image in fact.images if not storage.exists(image)), None)
        if missing is not None:
            raise UserError(f"{config.path}: the image {missing} is not there; correct its path.")
        most = max(len(fact.images) for fact in given)
        if most > images_per_prompt:
            raise UserError(
                f"{config.path}: a fact is about {most} images: raise data.images_per_prompt to {most}, or take it out."
            )
        control_items += [
            ControlItem(fact.text, fact.consistent, "given", fact.type, fact.image, more_images=fact.more_images)
            for fact in given
        ]
    control_items += known
    if not known or config.texts is not None:
        control_items += texts
    return ControlItemPool(tuple(control_items), tuple(orders), config.per_block)


def measure(asked: Iterable[AskedControlItem], thresholds: Mapping[str, float]) -> dict[str, Any]:
    """Measure the verifier's false-accept rate.

    Args:
        asked: the answered control items.
        thresholds: by fact type; a fact of no type, or of one that is not labelled, is a yes at the lowest of them.

    Returns:
        JSON-serialisable: ``gullibility`` is the share of known-false facts answered yes, ``by_kind`` the same for
        those with and without an order to say yes; ``true_accepted`` the share of known-true ones. Intervals are
        Wilson's, with the images as the trials, since facts about one image depend on each other.
    """
    groups: dict[str, _Group] = {name: _Group() for name in ("false", "true")}
    by_kind: dict[str, _Group] = {}
    unasked = 0
    for item in asked:
        if item.p_consistent is None:
            unasked += 1
            continue
        lowest = min(thresholds.values())
        threshold = lowest if item.type is None else thresholds.get(item.type, lowest)
        said_yes = item.p_consistent >= threshold
        chosen = [groups["true" if item.consistent else "false"]]
        if not item.consistent:
            chosen.append(by_kind.setdefault(f"{item.kind}{' with order' if item.injected else ''}", _Group()))
        for group in chosen:
            group.add(item.images, said_yes)
    return {
        "false_asked": groups["false"].asked,
        "gullibility": groups["false"].share(),
        "by_kind": {kind: {"asked": group.asked} | group.share() for kind, group in sorted(by_kind.items())},
        "true_asked": groups["true"].asked,
        "true_accepted": groups["true"].share(),
        "unasked": unasked,
    }


class _Group:
    def __init__(self) -> None:
        self.asked = 0
        self.yes = 0
        self.images: set[int] = set()

    def add(self, images: Sequence[str], said_yes: bool) -> None:
        self.asked += 1
        self.yes += said_yes
        self.images.add(_hash(*images))

    def share(self) -> dict[str, Any]:
        if not self.asked:
            return {"value": None, "interval": None}
        share = self.yes / self.asked
        return {"value": share, "interval": list(wilson_interval(share, len(self.images)))}


def _hash(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("\n".join(parts).encode(errors="surrogatepass")).digest()[:8])


def _read_texts(path: str | None, packaged: str) -> tuple[list[ControlItem], list[str]]:
    """Sentences that are true or false of any image, and the orders; without a path, those of a packaged file."""
    if path is None:
        name, content = packaged, (files(__name__) / packaged).read_text(encoding="utf-8")
    else:
        try:
            name, content = path, storage.read_bytes(path).decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"Cannot read the control items {path}: give an existing UTF-8 text file.") from error
    _, *pieces = _PART.split(content.replace("\r\n", "\n"))
    parts: dict[str, list[str]] = {"false": [], "true": [], "orders": []}
    for title, body in zip(pieces[::2], pieces[1::2], strict=True):
        lines = (line.strip() for line in body.split("\n"))
        parts[title] += [line for line in lines if line and not line.startswith("#")]
    if not parts["false"]:
        raise UserError(
            f"{name} holds no sentence below a line [false]: add some, or leave label.control_items.texts out."
        )
    wrong = next((order for order in parts["orders"] if _FACT not in order), None)
    if wrong is not None:
        raise UserError(f"{name}: the order {wrong!r} has no {_FACT}: put it where the false sentence belongs.")
    texts = [ControlItem(line, title == "true", "text") for title in ("false", "true") for line in parts[title]]
    return texts, parts["orders"]
