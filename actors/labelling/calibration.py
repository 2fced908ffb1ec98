"""Verification of facts whose truth is known: a Ray Data stage that finds P(yes) with a verifier's engine."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import ray
from PIL.Image import Image
from ray.data import ActorPoolStrategy

from actors.engine.blocks import ONE_BLOCK, seal, table_of, unseal
from actors.engine.start import announce_engines
from actors.labelling.fact_checker import FactChecker
from fgaif_ray.audit.labelled_facts import LabelledFact
from fgaif_ray.cluster import resources
from fgaif_ray.config import DataConfig, VerifierConfig
from fgaif_ray.errors import UserError
from fgaif_ray.images import load_images
from fgaif_ray.records import MORE_IMAGES, ImageRow, image_fields, read_images, write_images
from fgaif_ray.vlm.prompt_check import PromptMismatchError

FACTS_SCHEMA: Final = pa.schema(
    [
        pa.field("number", pa.int64(), nullable=False),
        pa.field("image", pa.string(), nullable=False),
        MORE_IMAGES,
        pa.field("fact", pa.string(), nullable=False),
    ]
)
VERIFIED_SCHEMA: Final = pa.schema(
    [
        pa.field("number", pa.int64()),
        pa.field("p_consistent", pa.float32()),
        pa.field("fatal", pa.string()),  # why the set cannot be used, in a row of its own
    ]
)
IMAGES_AT_ONCE: Final = 64
"""Images of a block, which are decoded together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationFact(ImageRow):
    """A fact of the labelled set on its way to a verifier.

    Example: ``CalibrationFact(number=0, image="photos/dog.jpg", text="There is a dog.")``
    """

    number: int
    """Of the fact in the labelled set, from 0."""
    text: str
    """The column ``fact``."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "CalibrationFact":
        """Build it from plain values."""
        return cls(number=row["number"], **read_images(row), text=row["fact"])

    def to_row(self) -> dict[str, Any]:
        """Return the plain values of ``FACTS_SCHEMA``."""
        return {"number": self.number, **write_images(self), "fact": self.text}


class CalibrationVerifier:
    """A worker that takes sealed tables of ``FACTS_SCHEMA`` and returns tables of ``VERIFIED_SCHEMA``.

    An image that cannot be read or a fact that cannot be asked is fatal: the set is a person's own, who can fix it.
    """

    def __init__(self, config: VerifierConfig, data: DataConfig) -> None:
        self._checker = FactChecker(config, data.chat_template_kwargs, data.images_per_prompt)
        self._most_images = data.images_per_prompt
        self._budget = data.pixel_budget

    def __call__(self, sealed: pa.Table) -> pa.Table:
        facts = [CalibrationFact.from_row(row) for row in unseal(sealed).to_pylist()]
        images: dict[str, Sequence[Image]] = {}
        for fact in facts:
            if len(fact.images) > self._most_images:
                return _fatal(
                    f"The fact {fact.text!r} is about {len(fact.images)} images: raise data.images_per_prompt to as "
                    "many, or take it out of the labelled set."
                )
            if _key(fact) not in images:
                try:
                    images[_key(fact)] = load_images(fact.images, self._budget)
                except UserError as error:
                    return _fatal(str(error))
        try:
            found = self._checker.ask([(_key(fact), fact.text) for fact in facts], images)
        except PromptMismatchError as error:
            return _fatal(str(error))
        if found.refused:
            (shown, text), reason = next(iter(found.refused.items()))
            return _fatal(
                f"The fact {text!r} about {shown} cannot be asked: {reason.removeprefix('fact: ')}; take it out of the "
                "labelled set."
            )
        answers = [
            {"number": fact.number, "p_consistent": found.answers[_key(fact), fact.text].p_yes} for fact in facts
        ]
        return pa.Table.from_pylist(answers, schema=VERIFIED_SCHEMA)


def _key(fact: CalibrationFact) -> str:
    return ", ".join(fact.images)


def _fatal(reason: str) -> pa.Table:
    return pa.Table.from_pylist([{"fatal": reason}], schema=VERIFIED_SCHEMA)


def verify_facts(
    config: VerifierConfig, facts: Sequence[LabelledFact], data: DataConfig
) -> Iterator[tuple[int, float]]:
    """Verify labelled facts; yields the number of each in the set and its P(yes), in any order.

    Raises:
        UserError: an image cannot be read, a fact cannot be asked, or the engine reads another prompt than is asked.
    """
    blocks = _blocks(facts)
    announce_engines("calibrate", min(config.engines, len(blocks)))
    dataset = ray.data.from_arrow([seal(block) for block in blocks]).map_batches(
        CalibrationVerifier,
        fn_constructor_kwargs={"config": config, "data": data},
        **ONE_BLOCK,
        compute=ActorPoolStrategy(size=min(config.engines, len(blocks))),
        **resources.verifier(config).options(),
    )
    for row in dataset.iter_rows():
        if row["fatal"] is not None:  # raised in a worker, it would arrive without its type
            raise UserError(row["fatal"])
        yield row["number"], row["p_consistent"]


def _blocks(facts: Sequence[LabelledFact]) -> list[pa.Table]:
    """Group all facts of the same images in one block."""
    by_images: dict[tuple[str, ...], list[CalibrationFact]] = {}
    for number, fact in enumerate(facts):
        given = CalibrationFact(number=number, **image_fields(fact.images), text=fact.text)
        by_images.setdefault(fact.images, []).append(given)
    images = list(by_images.values())
    return [
        table_of((fact for of_image in images[start : start + IMAGES_AT_ONCE] for fact in of_image), FACTS_SCHEMA)
        for start in range(0, len(images), IMAGES_AT_ONCE)
    ]
