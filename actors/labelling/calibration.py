"""Verification of facts whose truth is known: a Ray Data stage that finds P(yes) with a verifier's engine."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import pyarrow as pa
import ray
from PIL.Image import Image
from ray.data import ActorPoolStrategy

from actors.engine.blocks import ONE_BLOCK, seal, unseal
from actors.engine.start import announce_engines
from actors.labelling.fact_checker import FactChecker
from fgaif_ray.audit.labelled_facts import LabelledFact
from fgaif_ray.cluster import resources
from fgaif_ray.config import VerifierConfig
from fgaif_ray.errors import UserError
from fgaif_ray.images import load_image
from fgaif_ray.pixel_budget import PixelBudget

FACTS_SCHEMA: Final = pa.schema(
    [
        pa.field("number", pa.int64(), nullable=False),  # of the fact in the labelled set
        pa.field("image", pa.string(), nullable=False),
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


class CalibrationVerifier:
    """A worker that takes sealed tables of ``FACTS_SCHEMA`` and returns tables of ``VERIFIED_SCHEMA``.

    An image that cannot be read or a fact that cannot be asked is fatal: the set is a person's own, who can fix it.
    """

    def __init__(self, config: VerifierConfig, budget: PixelBudget) -> None:
        self._checker = FactChecker(config)
        self._budget = budget

    def __call__(self, sealed: pa.Table) -> pa.Table:
        rows = unseal(sealed).to_pylist()
        images: dict[str, Image] = {}
        for row in rows:
            if row["image"] not in images:
                try:
                    images[row["image"]] = load_image(row["image"], self._budget)
                except UserError as error:
                    return _fatal(str(error))
        found = self._checker.ask([(row["image"], row["fact"]) for row in rows], images)
        if found.refused:
            (image, text), reason = next(iter(found.refused.items()))
            return _fatal(
                f"The fact {text!r} about {image} cannot be asked: {reason.removeprefix('fact: ')}; take it out of the "
                "labelled set."
            )
        answers = [
            {"number": row["number"], "p_consistent": found.answers[row["image"], row["fact"]].p_yes} for row in rows
        ]
        return pa.Table.from_pylist(answers, schema=VERIFIED_SCHEMA)


def _fatal(reason: str) -> pa.Table:
    return pa.Table.from_pylist([{"fatal": reason}], schema=VERIFIED_SCHEMA)


def verify_facts(
    config: VerifierConfig, facts: Sequence[LabelledFact], budget: PixelBudget
) -> Iterator[dict[str, Any]]:
    """Verify labelled facts; yields rows of ``VERIFIED_SCHEMA`` without ``fatal``, in any order.

    Raises:
        UserError: an image cannot be read, or a fact cannot be asked.
    """
    blocks = _blocks(facts)
    announce_engines("calibrate", min(config.engines, len(blocks)))
    dataset = ray.data.from_arrow([seal(block) for block in blocks]).map_batches(
        CalibrationVerifier,
        fn_constructor_kwargs={"config": config, "budget": budget},
        **ONE_BLOCK,
        compute=ActorPoolStrategy(size=min(config.engines, len(blocks))),
        **resources.verifier(config).options(),
    )
    for row in dataset.iter_rows():
        if row["fatal"] is not None:  # raised in a worker, it would arrive without its type
            raise UserError(row["fatal"])
        yield row


def _blocks(facts: Sequence[LabelledFact]) -> list[pa.Table]:
    """Group all facts of an image in one block."""
    by_image: dict[str, list[dict[str, Any]]] = {}
    for number, fact in enumerate(facts):
        by_image.setdefault(fact.image, []).append({"number": number, "image": fact.image, "fact": fact.text})
    images = list(by_image.values())
    return [
        pa.Table.from_pylist([row for rows in images[start : start + IMAGES_AT_ONCE] for row in rows], FACTS_SCHEMA)
        for start in range(0, len(images), IMAGES_AT_ONCE)
    ]
