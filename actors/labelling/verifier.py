"""Verification of facts against the image, and the labels that follow: a Ray Data stage around a vLLM engine."""

import contextlib
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Final

import pyarrow as pa
from PIL.Image import Image

from actors.engine.block_counts import BlockCounts
from actors.labelling.checks import CHECKS_FOLDER, CHECKS_SCHEMA, VerificationCheck
from actors.labelling.extracted import ExtractedResponse, unseal_extracted
from actors.labelling.fact_checker import FactChecker, FactQuestion, Findings
from actors.labelling.metrics import record_control_items, record_labelled, record_prompt_tokens
from fgaif_ray import storage
from fgaif_ray.audit.control_items import ControlItem, ControlItemPool
from fgaif_ray.audit.control_items.asked import CONTROL_ITEMS_FOLDER, CONTROL_ITEMS_SCHEMA
from fgaif_ray.config import LabelConfig
from fgaif_ray.errors import UserError
from fgaif_ray.fact_types import FactType, type_names
from fgaif_ray.feedback.overrides import Overrides
from fgaif_ray.feedback.verdicts import Labeller, Thresholds
from fgaif_ray.images import load_images
from fgaif_ray.pixel_budget import UNLIMITED, PixelBudget
from fgaif_ray.records import (
    REJECTED_SCHEMA,
    Feedback,
    RejectedResponse,
    VerifiedFact,
    VerifiedSegment,
    feedback_schema,
    fingerprint,
)
from fgaif_ray.vlm.prompt_check import PromptMismatchError

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
    fact_types: tuple[FactType, ...]
    budget: PixelBudget = UNLIMITED
    """Of the images."""
    template: Mapping[str, Any] = field(default_factory=dict)
    """Variables for the verifiers' chat templates."""
    images_per_prompt: int = 1
    """The most images that a fact is about."""

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


class Verifier:
    """A worker that asks whether each fact is true of the image, labels the segments and writes the block.

    It takes what ``FactExtraction`` returns and returns the table of ``BlockCounts``. Responses that the endpoint
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
        self._checker = FactChecker(verification.config.verifier, verification.template, verification.images_per_prompt)
        self._budget = verification.budget

    def __call__(self, sealed: pa.Table) -> pa.Table:
        rows = unseal_extracted(sealed)
        if isinstance(rows, str):
            return BlockCounts(fatal=rows).to_table()
        name = fingerprint([row.response.sample_id for row in rows])
        waiting = {row.response.sample_id: row.unavailable for row in rows if row.unavailable is not None}
        rows, images = _load_images([row for row in rows if row.unavailable is None], self._budget)
        control_items = self._draw_control_items(name, images)
        own = [question for row in rows if row.reason is None for question in _questions(row)]
        asked = [*own, *(question for question in control_items if question[0] in images)]
        names = {row.response.image_sha256: ", ".join(row.response.images) for row in rows}
        try:
            found = self._checker.ask(asked, images, names)
        except PromptMismatchError as error:
            return BlockCounts(fatal=str(error)).to_table()
        rows = [_without_refused(row, found) for row in rows]
        labelled = [self._label(row, found) for row in rows if row.reason is None]
        rejected = {
            row.response.sample_id: RejectedResponse(response=row.response, reason=row.reason)
            for row in rows
            if row.reason is not None
        }
        record_prompt_tokens("first", found)
        record_control_items(found, control_items, self._thresholds)
        record_labelled(labelled, rejected.values())
        for kept in self._labelled_before(name, rejected.keys() | waiting.keys()):
            rejected.pop(kept.response.sample_id, None)
            waiting.pop(kept.response.sample_id, None)
            labelled.append(kept)
        self._write(name, labelled, list(rejected.values()), control_items, found, own)
        return BlockCounts(done=len(labelled), rejected=len(rejected), unavailable=tuple(waiting.values())).to_table()

    def _draw_control_items(self, name: str, images: dict[str, Sequence[Image]]) -> dict[FactQuestion, ControlItem]:
        """Draw the block's control items, by the questions that ask them; their images are added to those of the block.

        A control item whose image cannot be read is not asked, and counted as such.
        """
        drawn: dict[FactQuestion, ControlItem] = {}
        for item in self._control_items.draw(name, sorted(images)):
            key = ", ".join(item.images)
            if key not in images:  # a block's own images go by their digest, others by their paths
                key = f"{_CONTROL_IMAGE}{key}"
                if key not in images:
                    with contextlib.suppress(UserError):
                        images[key] = load_images(item.images, self._budget)
            drawn[key, item.text] = item
        return drawn

    def _labelled_before(self, name: str, ids: Set[str]) -> list[Feedback]:
        """Read what an earlier attempt at the block labelled."""
        part = storage.part_uri(self._partial, name)
        if not ids or not storage.exists(part):
            return []
        return [Feedback.from_row(row) for row in storage.read_part(part) if row["sample_id"] in ids]

    def _write(
        self,
        name: str,
        labelled: Sequence[Feedback],
        rejected: Sequence[RejectedResponse],
        control_items: dict[FactQuestion, ControlItem],
        found: Findings,
        own: list[FactQuestion],
    ) -> None:
        """Write the block's files, rows last: a block is done when they are there."""
        asked = [
            item.asked(found.answers[question].p_yes if question in found.answers else None).to_row()
            for question, item in control_items.items()
        ]
        if asked:
            storage.write_part(storage.join(self._partial, CONTROL_ITEMS_FOLDER), asked, CONTROL_ITEMS_SCHEMA, name)
        checks = [VerificationCheck.of(False, found, own).to_row()]
        storage.write_part(storage.join(self._partial, CHECKS_FOLDER), checks, CHECKS_SCHEMA, name)
        if rejected:
            rows = [response.to_row() for response in rejected]
            storage.write_part(self._rejected_partial, rows, REJECTED_SCHEMA, name)
        if labelled:
            storage.write_part(self._partial, [one.to_row() for one in labelled], self._schema, name)

    def _label(self, row: ExtractedResponse, found: Findings) -> Feedback:
        """Label a response whose facts are all verified."""
        response = row.response
        assert row.facts is not None
        segments = [
            VerifiedSegment(
                start=span.start,
                end=span.end,
                text=response.text[span.start : span.end],
                facts=tuple(
                    VerifiedFact(
                        type=fact.type,
                        text=fact.text,
                        p_consistent=found.answers[response.image_sha256, fact.text].p_yes,
                    )
                    for fact in facts
                ),
            )
            for span, facts in zip(row.spans, row.facts, strict=True)
        ]
        return self._labeller.label(response, segments)


def _load_images(
    rows: Sequence[ExtractedResponse], budget: PixelBudget
) -> tuple[list[ExtractedResponse], dict[str, Sequence[Image]]]:
    """Load the images of rows with facts, by their digest; a row with an image that cannot be read gets a reason."""
    images: dict[str, Sequence[Image]] = {}
    found = []
    for row in rows:
        key = row.response.image_sha256
        if row.facts is not None and key not in images:
            try:
                images[key] = load_images(row.response.images, budget)
            except UserError as error:
                row = replace(row, reason=f"image: {error}")
        found.append(row)
    return found, images


def _questions(row: ExtractedResponse) -> list[FactQuestion]:
    return [(row.response.image_sha256, fact.text) for facts in row.facts or () for fact in facts]


def _without_refused(row: ExtractedResponse, found: Findings) -> ExtractedResponse:
    """Give a row a reason that has a fact which cannot be asked about."""
    if row.reason is not None:
        return row
    return replace(
        row, reason=next((found.refused[question] for question in _questions(row) if question in found.refused), None)
    )
