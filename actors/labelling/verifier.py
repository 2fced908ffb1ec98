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
from actors.labelling.metrics import record_canaries, record_labelled, record_prompt_tokens
from fgaif_ray import storage
from fgaif_ray.audit.control_items import CANARIES_SCHEMA, Canary, CanaryPool
from fgaif_ray.audit.control_items import FOLDER as CANARIES_FOLDER
from fgaif_ray.config import LabelConfig
from fgaif_ray.errors import UserError
from fgaif_ray.fact_types import DEFAULT, FactType, type_names
from fgaif_ray.feedback.overrides import Overrides
from fgaif_ray.feedback.verdicts import Labeller, Thresholds
from fgaif_ray.images import load_image
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
_CANARY_IMAGE: Final = "canary "


@dataclass(frozen=True, slots=True)
class Verification:
    """What a verification depends on beside the engines: one object for every worker of a job."""

    config: LabelConfig
    partial: str
    """Folder that gets labelled rows."""
    rejected_partial: str
    thresholds: Thresholds
    second_thresholds: Thresholds | None
    canaries: CanaryPool
    fact_types: tuple[FactType, ...] = DEFAULT

    @property
    def types(self) -> tuple[str, ...]:
        """The names of the fact types."""
        return type_names(self.fact_types)

    def labeller(self, both: bool) -> Labeller:
        """What labels rows after the first verifier, or after both."""
        return Labeller(
            self.thresholds,
            self.second_thresholds if both else None,
            both and self.config.disagreement == "mask",
            Overrides.load(self.config, self.types),
            self.annotator(both),
            self.fact_types,
        )

    def annotator(self, both: bool) -> str:
        """The ``annotator`` column: what the labels depend on, as JSON."""
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
    """One number where it is the same for all types."""
    values = set(thresholds.values())
    return values.pop() if len(values) == 1 else dict(thresholds)


def checks_of(second: bool, found: Findings, own: list[FactQuestion]) -> dict[str, Any]:
    """A row of ``CHECKS_SCHEMA``; ``own`` are the questions without canaries."""
    masses = [found.answers[question].mass for question in own if question in found.answers]
    return {
        "second": second,
        "questions": len(masses),
        "answer_mass": math.fsum(masses),
        "prompt_tokens": found.prompt_tokens,
        "cached_tokens": found.cached_tokens,
    }


class Verifier:
    """Asks whether each fact is right according to the image, labels the sub-sentences and writes the block.

    Takes sealed tables of ``EXTRACTED_SCHEMA`` and returns one row of ``COUNTS_SCHEMA``. Responses that the endpoint
    failed on are not written: they stay pending. A block that is done again keeps the labels that it got before for
    responses that are rejected or unavailable this time.
    """

    def __init__(self, verification: Verification) -> None:
        self._partial = verification.partial
        self._rejected_partial = verification.rejected_partial
        self._canaries = verification.canaries
        self._thresholds = verification.thresholds
        self._labeller = verification.labeller(both=False)
        self._schema = feedback_schema(verification.types)
        self._checker = FactChecker(verification.config.verifier)

    def __call__(self, sealed: pa.Table) -> pa.Table:
        rows = unseal(sealed).to_pylist()
        fatal = next((row["fatal"] for row in rows if row["fatal"] is not None), None)
        if fatal is not None:
            return pa.Table.from_pylist([{"fatal": fatal}], schema=COUNTS_SCHEMA)
        name = fingerprint([row["sample_id"] for row in rows])
        waiting = {row["sample_id"]: row["unavailable"] for row in rows if row["unavailable"] is not None}
        rows = [row for row in rows if row["unavailable"] is None]
        images = _load_images(rows)
        canaries = self._draw_canaries(name, images)
        own = [
            (row["image_sha256"], fact["text"])
            for row in rows
            if row["reason"] is None
            for facts in row["facts"]
            for fact in facts
        ]
        found = self._checker.ask([*own, *(question for question in canaries if question[0] in images)], images)
        for row in rows:
            if row["reason"] is None:
                questions = ((row["image_sha256"], fact["text"]) for facts in row["facts"] for fact in facts)
                row["reason"] = next(
                    (found.refused[question] for question in questions if question in found.refused), None
                )
        labelled = [self._label(row, found) for row in rows if row["reason"] is None]
        rejected = {row["sample_id"]: row for row in rows if row["reason"] is not None}
        record_prompt_tokens("first", found)
        record_canaries(found, canaries, self._thresholds)
        record_labelled(labelled, list(rejected.values()))
        for kept in self._labelled_before(name, rejected.keys() | waiting.keys()):
            rejected.pop(kept["sample_id"], None)
            waiting.pop(kept["sample_id"], None)
            labelled.append(kept)
        self._write(name, labelled, list(rejected.values()), canaries, found, own)
        counts = {"labelled": len(labelled), "rejected": len(rejected), "unavailable": list(waiting.values())}
        return pa.Table.from_pylist([counts], schema=COUNTS_SCHEMA)

    def _draw_canaries(self, name: str, images: dict[str, Image]) -> dict[FactQuestion, Canary]:
        """The block's canaries by the questions that ask them; their images are added to those of the block.

        A canary whose image cannot be read is not asked, and counted as such.
        """
        drawn: dict[FactQuestion, Canary] = {}
        for canary in self._canaries.draw(name, sorted(images)):
            assert canary.image is not None
            key = canary.image
            if key not in images:  # a block's own images go by their hash, others by their path
                key = f"{_CANARY_IMAGE}{canary.image}"
                if key not in images:
                    with contextlib.suppress(UserError):
                        images[key] = load_image(canary.image)
            drawn[key, canary.text] = canary
        return drawn

    def _labelled_before(self, name: str, ids: Set[str]) -> list[dict[str, Any]]:
        """Rows that an earlier attempt at the block labelled."""
        part = storage.part_uri(self._partial, name)
        if not ids or not storage.exists(part):
            return []
        return [row for row in storage.read_part(part) if row["sample_id"] in ids]

    def _write(
        self,
        name: str,
        labelled: list[dict[str, Any]],
        rejected: list[dict[str, Any]],
        canaries: dict[FactQuestion, Canary],
        found: Findings,
        own: list[FactQuestion],
    ) -> None:
        """Rows come last: a block is done when they are there."""
        asked = [
            {
                "image": canary.image,
                "fact": canary.text,
                "kind": canary.kind,
                "type": canary.type,
                "consistent": canary.consistent,
                "injected": canary.injected,
                "p_consistent": found.answers[question].p_yes if question in found.answers else None,
            }
            for question, canary in canaries.items()
        ]
        if asked:
            storage.write_part(storage.join(self._partial, CANARIES_FOLDER), asked, CANARIES_SCHEMA, name)
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


def _load_images(rows: list[dict[str, Any]]) -> dict[str, Image]:
    """Decode the facts of rows, and the images by their hash; a row whose image cannot be read gets a reason."""
    images: dict[str, Image] = {}
    for row in rows:
        row["facts"] = json.loads(row["facts"]) if row["facts"] is not None else None
        if row["facts"] is not None and row["image_sha256"] not in images:
            try:
                images[row["image_sha256"]] = load_image(row["image"])
            except UserError as error:
                row["reason"] = f"image: {error}"
    return images
