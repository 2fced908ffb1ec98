"""Verification of facts against the image, and the labels that follow: a Ray Data stage around a vLLM engine."""

import contextlib
import json
import math
from collections.abc import Set
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
from PIL.Image import Image

from actors.engine.blocks import unseal
from actors.labelling.fact_checker import FactChecker, FactQuestion, Findings
from actors.labelling.metrics import record_control_items, record_labelled, record_prompt_tokens
from fgaif_ray import storage
from fgaif_ray.audit.control_items import CONTROL_ITEMS_SCHEMA, ControlItem, ControlItemPool
from fgaif_ray.audit.control_items import FOLDER as CONTROL_ITEMS_FOLDER
from fgaif_ray.config import LabelConfig
from fgaif_ray.errors import UserError
from fgaif_ray.fact_types import DEFAULT, FactType, type_names
from fgaif_ray.feedback.overrides import Overrides
from fgaif_ray.feedback.verdicts import Labeller, Thresholds
from fgaif_ray.images import load_image
from fgaif_ray.pixel_budget import UNLIMITED, PixelBudget
from fgaif_ray.records import REJECTED_SCHEMA, feedback_schema, fingerprint

COUNTS_SCHEMA: Final = pa.schema(
    [
        pa.field("labelled", pa.int64()),
        pa.field("rejected", pa.int64()),
        pa.field("unavailable", pa.list_(pa.string())),  # of each row that stays pending: why the endpoint failed on it
        pa.field("fatal", pa.string()),
    ]
)
CHECKS_FOLDER: Final = "checks"
"""Folder inside the stage that holds a row of ``CHECKS_SCHEMA`` for each verified block."""
CHECKS_SCHEMA: Final = pa.schema(
    [
        pa.field("second", pa.bool_(), nullable=False),  # of the second verifier
        pa.field("questions", pa.int64(), nullable=False),
        pa.field("answer_mass", pa.float64(), nullable=False),  # sum of P(yes) + P(no), of the whole vocabulary
        pa.field("prompt_tokens", pa.int64(), nullable=False),
        pa.field("cached_tokens", pa.int64(), nullable=False),
    ]
)
_CONTROL_IMAGE: Final = "control item "


@dataclass(frozen=True, slots=True)
class Verification:
    """The inputs of a verification beside the engines, the same for every worker of a job."""

    config: LabelConfig
    partial: str
    """Folder of labelled rows."""
    rejected_partial: str
    thresholds: Thresholds
    second_thresholds: Thresholds | None
    control_items: ControlItemPool
    fact_types: tuple[FactType, ...] = DEFAULT
    budget: PixelBudget = UNLIMITED
    """Of the images."""

    @property
    def types(self) -> tuple[str, ...]:
        """The names of the fact types."""
        return type_names(self.fact_types)

    def labeller(self, both: bool) -> Labeller:
        """Return the labeller of rows after the first verifier, or after both."""
        return Labeller(
            self.thresholds,
            self.second_thresholds if both else None,
            both and self.config.disagreement == "mask",
            Overrides.load(self.config, self.types),
            self.annotator(both),
            self.fact_types,
        )

    def annotator(self, both: bool) -> str:
        """Return the ``annotator`` column: what the labels depend on, as JSON."""
        extractor, first, second = self.config.extractor, self.config.verifier, self.config.second_verifier
        described: dict[str, Any] = {
            "extractor": {"model": extractor.model, "prompt": extractor.prompt, "mode": extractor.mode},
            "verifier": {"model": first.model, "prompt": first.prompt, "threshold": _plain(self.thresholds)},
        }
        if both and second is not None and self.second_thresholds is not None:
            described["second_verifier"] = {
                "model": second.model,
                "prompt": second.prompt,
                "threshold": _plain(self.second_thresholds),
                "disagreement": self.config.disagreement,
            }
        return json.dumps(described)


def _plain(thresholds: Thresholds) -> float | dict[str, float]:
    """Return one number if it is the same for all types."""
    values = set(thresholds.values())
    return values.pop() if len(values) == 1 else dict(thresholds)


def checks_of(second: bool, found: Findings, own: list[FactQuestion]) -> dict[str, Any]:
    """A row of ``CHECKS_SCHEMA``; ``own`` are the questions without control items."""
    masses = [found.answers[question].mass for question in own if question in found.answers]
    return {
        "second": second,
        "questions": len(masses),
        "answer_mass": math.fsum(masses),
        "prompt_tokens": found.prompt_tokens,
        "cached_tokens": found.cached_tokens,
    }


class Verifier:
    """A worker that asks whether each fact is true of the image, labels the segments and writes the block.

    It takes sealed tables of ``EXTRACTED_SCHEMA`` and returns one row of ``COUNTS_SCHEMA``. Responses that the endpoint
    failed on are not written: they stay pending. A block that is done again keeps the labels that it got before for
    responses that are rejected or unavailable this time.
    """

    def __init__(self, verification: Verification) -> None:
        self._partial = verification.partial
        self._rejected_partial = verification.rejected_partial
        self._control_items = verification.control_items
        self._thresholds = verification.thresholds
        self._labeller = verification.labeller(both=False)
        self._schema = feedback_schema(verification.types)
        self._checker = FactChecker(verification.config.verifier)
        self._budget = verification.budget

    def __call__(self, sealed: pa.Table) -> pa.Table:
        rows = unseal(sealed).to_pylist()
        fatal = next((row["fatal"] for row in rows if row["fatal"] is not None), None)
        if fatal is not None:
            return pa.Table.from_pylist([{"fatal": fatal}], schema=COUNTS_SCHEMA)
        name = fingerprint([row["sample_id"] for row in rows])
        waiting = {row["sample_id"]: row["unavailable"] for row in rows if row["unavailable"] is not None}
        rows = [row for row in rows if row["unavailable"] is None]
        images = _load_images(rows, self._budget)
        control_items = self._draw_control_items(name, images)
        own = [
            (row["image_sha256"], fact["text"])
            for row in rows
            if row["reason"] is None
            for facts in row["facts"]
            for fact in facts
        ]
        found = self._checker.ask([*own, *(question for question in control_items if question[0] in images)], images)
        for row in rows:
            if row["reason"] is None:
                questions = ((row["image_sha256"], fact["text"]) for facts in row["facts"] for fact in facts)
                row["reason"] = next(
                    (found.refused[question] for question in questions if question in found.refused), None
                )
        labelled = [self._label(row, found) for row in rows if row["reason"] is None]
        rejected = {row["sample_id"]: row for row in rows if row["reason"] is not None}
        record_prompt_tokens("first", found)
        record_control_items(found, control_items, self._thresholds)
        record_labelled(labelled, list(rejected.values()))
        for kept in self._labelled_before(name, rejected.keys() | waiting.keys()):
            rejected.pop(kept["sample_id"], None)
            waiting.pop(kept["sample_id"], None)
            labelled.append(kept)
        self._write(name, labelled, list(rejected.values()), control_items, found, own)
        counts = {"labelled": len(labelled), "rejected": len(rejected), "unavailable": list(waiting.values())}
        return pa.Table.from_pylist([counts], schema=COUNTS_SCHEMA)

    def _draw_control_items(self, name: str, images: dict[str, Image]) -> dict[FactQuestion, ControlItem]:
        """Draw the block's control items, by the questions that ask them; their images are added to those of the block.

        A control item whose image cannot be read is not asked, and counted as such.
        """
        drawn: dict[FactQuestion, ControlItem] = {}
        for item in self._control_items.draw(name, sorted(images)):
            assert item.image is not None
            key = item.image
            if key not in images:  # a block's own images go by their hash, others by their path
                key = f"{_CONTROL_IMAGE}{item.image}"
                if key not in images:
                    with contextlib.suppress(UserError):
                        images[key] = load_image(item.image, self._budget)
            drawn[key, item.text] = item
        return drawn

    def _labelled_before(self, name: str, ids: Set[str]) -> list[dict[str, Any]]:
        """Read the rows that an earlier attempt at the block labelled."""
        part = storage.part_uri(self._partial, name)
        if not ids or not storage.exists(part):
            return []
        return [row for row in storage.read_part(part) if row["sample_id"] in ids]

    def _write(
        self,
        name: str,
        labelled: list[dict[str, Any]],
        rejected: list[dict[str, Any]],
        control_items: dict[FactQuestion, ControlItem],
        found: Findings,
        own: list[FactQuestion],
    ) -> None:
        """Write the block's files, rows last: a block is done when they are there."""
        asked = [
            {
                "image": item.image,
                "fact": item.text,
                "kind": item.kind,
                "type": item.type,
                "consistent": item.consistent,
                "injected": item.injected,
                "p_consistent": found.answers[question].p_yes if question in found.answers else None,
            }
            for question, item in control_items.items()
        ]
        if asked:
            storage.write_part(storage.join(self._partial, CONTROL_ITEMS_FOLDER), asked, CONTROL_ITEMS_SCHEMA, name)
        checks = [checks_of(False, found, own)]
        storage.write_part(storage.join(self._partial, CHECKS_FOLDER), checks, CHECKS_SCHEMA, name)
        if rejected:
            storage.write_part(self._rejected_partial, rejected, REJECTED_SCHEMA, name)
        if labelled:
            storage.write_part(self._partial, labelled, self._schema, name)

    def _label(self, row: dict[str, Any], found: Findings) -> dict[str, Any]:
        segments = []
        for (start, end), facts in zip(row["spans"], row["facts"], strict=True):
            verified = [
                fact | {"p_consistent": found.answers[row["image_sha256"], fact["text"]].p_yes} for fact in facts
            ]
            text = row["response"][start:end]
            segments.append({"start": start, "end": end, "text": text, "facts": verified})
        return self._labeller.label(row | {"segments": segments})


def _load_images(rows: list[dict[str, Any]], budget: PixelBudget) -> dict[str, Image]:
    """Decode the facts of rows, and the images by their hash; a row whose image cannot be read gets a reason."""
    images: dict[str, Image] = {}
    for row in rows:
        row["facts"] = json.loads(row["facts"]) if row["facts"] is not None else None
        if row["facts"] is not None and row["image_sha256"] not in images:
            try:
                images[row["image_sha256"]] = load_image(row["image"], budget)
            except UserError as error:
                row["reason"] = f"image: {error}"
    return images
