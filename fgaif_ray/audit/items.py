"""A stratified sample of labelled segments for people to label.

The strata are the AI's labels by fact type (existence hallucinated, relation absent, ...): three a type, and every
segment lies in one of each type. The sample fills them evenly, so that the rare labels are seen too. A segment's *cell*
is its labels of all types. Cells are disjoint, and which segments of one are drawn is decided by a hash; so the sample
can be weighted back to the set that it was drawn from (``cell_weights``).
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from fgaif_ray.errors import UserError
from fgaif_ray.records import CLASS_NAMES, Fact, Feedback, fingerprint

SAMPLE_FORMAT: Final = "fgaif-audit"
SAMPLE_VERSION: Final = 1
_LOOK_AHEAD: Final = 50
"""Candidates of a cell among which one with a new image is sought."""

Cell = tuple[int, ...]
"""The AI's label codes in the order of the audit's fact types."""


@dataclass(frozen=True, slots=True)
class AuditItem:
    """One segment to label, and what the AI found."""

    sample_id: str
    segment: int
    """Number of the segment in the response, from 0."""
    image: str
    image_sha256: str
    prompt: str
    response: str
    start: int
    end: int
    facts: tuple[Fact, ...]
    verdicts: tuple[bool, ...]
    """The AI's verdicts by fact, hidden from people who label."""
    labels: Mapping[str, int]
    """The AI's label codes by fact type, in the order of the audit's."""
    more_images: tuple[str, ...] = ()
    """Those after the first, of a response about several."""

    @property
    def images(self) -> tuple[str, ...]:
        """Path or URI of each."""
        return (self.image, *self.more_images)

    def to_json(self) -> dict[str, Any]:
        """Return its JSON-serialisable values, without ``more_images`` where there are none."""
        return {name: value for name, value in asdict(self).items() if name != "more_images" or value}

    @property
    def text(self) -> str:
        """The segment."""
        return self.response[self.start : self.end]

    @property
    def cell(self) -> Cell:
        """Return its labels."""
        return tuple(self.labels.values())


@dataclass(frozen=True, slots=True)
class Audit:
    """A sample and the set that it was drawn from."""

    id: str
    """Identity, equal for equal samples."""
    seed: int
    items: tuple[AuditItem, ...]
    population: Mapping[Cell, int]
    """Segments of each cell in the whole set."""
    types: tuple[str, ...]
    """What the segments are labelled for."""

    def strata(self) -> dict[str, dict[str, dict[str, int]]]:
        """``{type: {label: {"population", "drawn"}}}``"""
        drawn = Counter(item.cell for item in self.items)
        return {
            name: {
                title: {
                    "population": sum(count for cell, count in self.population.items() if cell[place] == code),
                    "drawn": sum(count for cell, count in drawn.items() if cell[place] == code),
                }
                for code, title in enumerate(CLASS_NAMES)
            }
            for place, name in enumerate(self.types)
        }

    def to_dict(self) -> dict[str, Any]:
        """The sample as JSON-serialisable values; ``from_dict`` reads them back."""
        return {
            "format": SAMPLE_FORMAT,
            "version": SAMPLE_VERSION,
            "id": self.id,
            "seed": self.seed,
            "strata": self.strata(),
            "cells": [{"labels": list(cell), "population": count} for cell, count in sorted(self.population.items())],
            "items": [item.to_json() for item in self.items],
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Audit":
        """Read back what ``to_dict`` gave.

        Raises:
            UserError: another format or version.
        """
        if (value.get("format"), value.get("version")) != (SAMPLE_FORMAT, SAMPLE_VERSION):
            raise UserError(
                "The audit's sample.json is of another version: draw the audit again with `fgaif audit draw N`."
            )
        types = tuple(value["strata"])
        items = (
            AuditItem(
                **item
                | {
                    "facts": tuple(map(Fact.from_row, item["facts"])),
                    "verdicts": tuple(item["verdicts"]),
                    "labels": {name: item["labels"][name] for name in types},
                    "more_images": tuple(item.get("more_images", ())),
                }
            )
            for item in value["items"]
        )
        cells = {tuple(cell["labels"]): cell["population"] for cell in value["cells"]}
        return cls(value["id"], value["seed"], tuple(items), cells, types)


@dataclass(frozen=True, slots=True, order=True)
class _Candidate:
    priority: int
    """Return the priority, from a hash; lower ones are drawn first."""
    sample_id: str
    segment: int
    image_sha256: str


class AuditSampler:
    """Sampler of an audit, in two passes over the feedback rows, with memory for the sample alone.

    Equal rows, in any order, give equal samples.

    Example::

        sampler = AuditSampler(count=200, seed=0)
        for feedback in read(): sampler.offer(feedback)
        audit = sampler.collect(read())
    """

    def __init__(self, count: int, seed: int) -> None:
        """Set the number of segments to draw, all where there are fewer, and the seed of the draw.

        Raises:
            UserError: the number is less than one.
        """
        if count < 1:
            raise UserError(f"An audit takes the number of segments to label, at least 1, not {count}.")
        self._count, self._seed = count, seed
        self._types: tuple[str, ...] = ()
        self._population: Counter[Cell] = Counter()
        self._kept: dict[Cell, list[tuple[int, _Candidate]]] = {}

    def offer(self, feedback: Feedback) -> None:
        """Count the segments of a feedback row."""
        response = feedback.response
        for index, segment in enumerate(feedback.segments):
            self._types = self._types or tuple(segment.ai_labels)  # all rows of a folder have the same
            cell = tuple(segment.ai_labels[name] for name in self._types)
            self._population[cell] += 1
            place = f"{self._seed}\n{response.sample_id}\n{index}".encode()
            priority = int.from_bytes(hashlib.sha256(place).digest()[:8])
            entry = -priority, _Candidate(priority, response.sample_id, index, response.image_sha256)
            heap = self._kept.setdefault(cell, [])
            if len(heap) < self._count + _LOOK_AHEAD:
                heapq.heappush(heap, entry)
            else:
                heapq.heappushpop(heap, entry)  # drops the highest priority number

    def collect(self, rows: Iterable[Feedback]) -> Audit:
        """Collect the sample in a second pass over the same feedback rows.

        Raises:
            UserError: no segment was offered.
        """
        chosen = self._choose()
        if not chosen:
            raise UserError("There is no labelled segment to audit: label some responses first.")
        wanted: dict[str, list[int]] = {}
        for candidate in chosen:
            wanted.setdefault(candidate.sample_id, []).append(candidate.segment)
        found = {
            (feedback.response.sample_id, index): _item(feedback, index, self._types)
            for feedback in rows
            for index in wanted.get(feedback.response.sample_id, ())
        }
        # The order of priorities says nothing about labels.
        items = tuple(found[candidate.sample_id, candidate.segment] for candidate in sorted(chosen))
        key = fingerprint("audit-1", self._seed, [item.to_json() for item in items])
        return Audit(key, self._seed, items, dict(self._population), self._types)

    def _choose(self) -> list[_Candidate]:
        """Repeatedly fill the stratum with the fewest; new images come first."""
        left = {cell: sorted(candidate for _, candidate in heap) for cell, heap in self._kept.items()}
        strata = {(place, code): 0 for place in range(len(self._types)) for code in range(len(CLASS_NAMES))}
        used: Counter[str] = Counter()
        chosen: list[_Candidate] = []
        while len(chosen) < self._count and left:
            open_strata = [stratum for stratum in strata if any(cell[stratum[0]] == stratum[1] for cell in left)]
            place, code = min(open_strata, key=lambda stratum: strata[stratum])
            _, candidate, cell = min(
                (used[candidate.image_sha256], candidate, cell)
                for cell, candidates in left.items()
                if cell[place] == code
                for candidate in candidates[:_LOOK_AHEAD]
            )
            left[cell].remove(candidate)
            if not left[cell]:
                del left[cell]
            used[candidate.image_sha256] += 1
            for stratum in enumerate(cell):
                strata[stratum] += 1
            chosen.append(candidate)
        return chosen


def cell_weights(cells: Sequence[Cell], population: Mapping[Cell, int]) -> list[float]:
    """Return how many segments each drawn one stands for, scaled to a mean of 1.

    Args:
        cells: cell of each drawn (and answered) segment.
        population: segments of each cell in the whole set.
    """
    drawn = Counter(cells)
    covered = sum(population[cell] for cell in drawn)
    return [population[cell] / drawn[cell] * len(cells) / covered for cell in cells]


def _item(feedback: Feedback, index: int, types: Sequence[str]) -> AuditItem:
    response, segment = feedback.response, feedback.segments[index]
    return AuditItem(
        sample_id=response.sample_id,
        segment=index,
        image=response.image,
        image_sha256=response.image_sha256,
        prompt=response.prompt,
        response=response.text,
        start=segment.start,
        end=segment.end,
        facts=tuple(Fact(fact.type, fact.text) for fact in segment.facts),
        verdicts=tuple(fact.consistent for fact in segment.facts),
        labels={name: segment.ai_labels[name] for name in types},
        more_images=response.more_images,
    )
