"""Facts of known truth, as JSON lines, for calibration of thresholds and for control items.

A line is ``{"image", "fact", "type", "consistent", "weight"}``. ``image`` is a path relative to the file, or a URI; or
a list of them where the fact is about several. ``type`` is one of the run's fact types;
``consistent`` says whether the fact is right according to the image; ``weight`` is how many facts it stands for, 1
where it is left out. Blank lines are skipped, further keys are not read.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fgaif_ray import storage
from fgaif_ray.audit.human import HumanAnswer, SegmentPlace, majority
from fgaif_ray.audit.items import Audit, cell_weights
from fgaif_ray.errors import UserError
from fgaif_ray.records import images_key


@dataclass(frozen=True, slots=True)
class LabelledFact:
    """A fact and its truth.

    Example: ``LabelledFact("photos/dog.jpg", "There is a dog.", "existence", True)``
    """

    image: str
    """Path or URI."""
    text: str
    type: str | None
    """None where the type is unknown."""
    consistent: bool
    weight: float = 1.0
    more_images: tuple[str, ...] = ()
    """Those after the first, where the fact is about several."""

    @property
    def images(self) -> tuple[str, ...]:
        """Path or URI of each."""
        return (self.image, *self.more_images)

    def to_line(self) -> dict[str, Any]:
        """Return it as a line's object."""
        return {
            "image": images_key(self.images),
            "fact": self.text,
            "type": self.type,
            "consistent": self.consistent,
            "weight": self.weight,
        }


def read_labelled_facts(path: str, types: Sequence[str]) -> list[LabelledFact]:
    """Read facts that are all labelled, of both classes.

    Raises:
        UserError: the file cannot be read, a line is not of the form, or all facts are of one class.
    """
    facts = [_parse(line, path, number, types, labelled=True) for number, line in _lines(path)]
    if not facts:
        raise UserError(f'{path} holds no facts: give JSON lines of {{"image", "fact", "type", "consistent"}}.')
    if len({fact.consistent for fact in facts}) < 2:
        given, missing = ("right", "wrong") if facts[0].consistent else ("wrong", "right")
        raise UserError(
            f"All facts in {path} are {given}: a threshold takes facts of both kinds, so add some that are {missing}."
        )
    return facts


def read_control_facts(path: str, types: Sequence[str]) -> list[LabelledFact]:
    """Read facts that are wrong unless they say otherwise; ``type`` may be left out.

    Raises:
        UserError: the file cannot be read, or a line is not of the form.
    """
    facts = [_parse(line, path, number, types, labelled=False) for number, line in _lines(path)]
    if not facts:
        raise UserError(f'{path} holds no control items: give JSON lines of {{"image", "fact"}}.')
    return facts


def facts_of_audit(audit: Audit, answers: Sequence[HumanAnswer]) -> list[LabelledFact]:
    """Return the facts that most people call right or wrong; ties are left out.

    Weights stand for the whole labelled set, as an audit's sample is not as evenly spread as that.
    """
    votes: dict[tuple[SegmentPlace, int], Counter[int]] = {}
    for answer in answers:
        for index, right in enumerate(answer.facts or ()):
            if right is not None:
                votes.setdefault((answer.place, index), Counter())[int(right)] += 1
    truths = {key: truth for key, counts in votes.items() if (truth := majority(counts)) is not None}
    judged = {place for place, _ in truths}
    items = [item for item in audit.items if (item.sample_id, item.segment) in judged]
    weights = cell_weights([item.cell for item in items], audit.population)
    return [
        LabelledFact(
            image=_absolute(item.image),
            more_images=tuple(map(_absolute, item.more_images)),
            text=fact.text,
            type=fact.type,
            consistent=bool(truth),
            weight=round(weight, 6),
        )
        for item, weight in zip(items, weights, strict=True)
        for index, fact in enumerate(item.facts)
        if (truth := truths.get(((item.sample_id, item.segment), index))) is not None
    ]


def _absolute(image: str) -> str:
    return os.path.abspath(image) if storage.is_local(image) else image


def write_labelled_facts(uri: str, facts: Sequence[LabelledFact]) -> None:
    """Write JSON lines, whole or not at all; ``read_labelled_facts`` reads them back."""
    lines = (json.dumps(fact.to_line(), ensure_ascii=False) + "\n" for fact in facts)
    storage.write_bytes(uri, "".join(lines).encode())


def _lines(path: str) -> Iterator[tuple[int, str]]:
    try:
        text = storage.read_bytes(path).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"Cannot read the facts {path}: give an existing file of JSON lines.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: give a file of JSON lines.") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def _parse(line: str, path: str, number: int, types: Sequence[str], labelled: bool) -> LabelledFact:
    where = f"{path}, line {number}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: give one object a line.") from error
    if not isinstance(row, dict):
        raise UserError(f"{where} is not an object: give {{...}} with image and fact.")
    named = row.get("image")
    images: list[Any] = named if isinstance(named, list) else [named]
    for key, texts in (("image", images), ("fact", [row.get("fact")])):
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f"{where} has no text in {key!r}: give the image's path or URI and the fact.")
    kind = row.get("type")
    if kind not in types and (labelled or kind is not None):
        raise UserError(f"{where} has the type {kind!r}: give one of {', '.join(types)}.")
    consistent = row.get("consistent", None if labelled else False)
    if not isinstance(consistent, bool):
        raise UserError(f"{where} does not say whether the fact is right: set 'consistent' to true or false.")
    weight = row.get("weight", 1.0)
    if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < weight < float("inf"):
        raise UserError(f"{where} has the weight {weight!r}: give a number above 0, or leave it out.")
    image, *more = (storage.resolve_path(one, storage.parent(path)) for one in images)
    return LabelledFact(image, row["fact"].strip(), kind, consistent, float(weight), tuple(more))
