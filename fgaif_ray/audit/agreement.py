"""Agreement of the AI's labels with people's, from the answers to an audit."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fgaif_ray.audit.human import HumanAnswer, SegmentPlace, majority
from fgaif_ray.audit.items import Audit, AuditItem, cell_weights
from fgaif_ray.errors import UserError
from fgaif_ray.records import ABSENT, CLASS_NAMES, images_key
from fgaif_ray.statistics.agreement import agreement
from fgaif_ray.statistics.intervals import CONFIDENCE, DRAWS
from fgaif_ray.statistics.reliability import MISSING, estimate_agreement, estimate_alpha

AGREEMENT_FORMAT: Final = "fgaif-audit-agreement"
AGREEMENT_VERSION: Final = 1
FACT_CLASSES: Final = ("consistent", "hallucinated")
"""Classes of a verdict on one fact."""


@dataclass(frozen=True, slots=True)
class _Unit:
    """A rated unit: a segment for one fact type, or one of its facts."""

    item: AuditItem
    ai: int
    votes: Mapping[str, int]
    """Class code by annotator."""

    @property
    def consensus(self) -> int | None:
        return majority(Counter(self.votes.values()))


def check_answers(audit: Audit, answers: Sequence[HumanAnswer], source: str) -> None:
    """Refuse answers to anything but this audit; ``source`` names them.

    Raises:
        UserError: they are about another sample or segment, or judge another number of facts.
    """
    items = {(item.sample_id, item.segment): item for item in audit.items}
    for answer in answers:
        if answer.audit != audit.id:
            raise UserError(
                f"{source} answers another sample ({answer.audit}) than that in the run's audit folder ({audit.id}): "
                "import the answers to this one."
            )
        item = items.get(answer.place)
        if item is None or item.text != answer.text:
            raise UserError(
                f"{source} answers about segment {answer.segment} of {answer.sample_id}, which is not in the "
                "sample: export the answers again."
            )
        if answer.facts is not None and len(answer.facts) != len(item.facts):
            raise UserError(
                f"{source} judges {len(answer.facts)} facts of segment {answer.segment} of {answer.sample_id}, "
                f"which has {len(item.facts)}: export the answers again."
            )


def compare(audit: Audit, answers: Sequence[HumanAnswer], *, draws: int = DRAWS) -> dict[str, Any]:
    """Compare the AI's labels with people's.

    The truth is what most people said; ties and missing answers are left out and counted. Metrics come twice:
    ``sample`` as answered, and ``weighted`` to the whole labelled set, whose labels are not as evenly spread as the
    sample's. The AI counts as one more annotator in ``alpha_with_ai``.

    Args:
        audit: the sample.
        answers: of one or several people, checked by ``check_answers``.
        draws: bootstrap samples; images are drawn.

    Returns:
        JSON-serialisable figures: ``labels`` and ``facts`` by type, ``disagreements``, and the counts behind them. Of a
        type, ``covered`` is the share of the labelled set that the weighted metrics speak for.
    """
    by_place: dict[SegmentPlace, list[HumanAnswer]] = {}
    for answer in answers:
        by_place.setdefault(answer.place, []).append(answer)
    annotators = sorted({answer.annotator for answer in answers})
    labels = {name: _label_units(audit, by_place, name) for name in audit.types}
    facts = {name: _fact_units(audit, by_place, name) for name in audit.types}

    def figures(units: Sequence[_Unit], classes: Sequence[str], among: int) -> dict[str, Any]:
        return _figures(audit, units, annotators, classes, among, draws)

    whole = sum(audit.population.values())
    with_facts = {
        name: sum(count for cell, count in audit.population.items() if cell[place] != ABSENT)
        for place, name in enumerate(audit.types)
    }
    return {
        "format": AGREEMENT_FORMAT,
        "version": AGREEMENT_VERSION,
        "audit": audit.id,
        "annotators": annotators,
        "sub_sentences": len(audit.items),
        "answered": len(by_place),
        "images": len({item.image_sha256 for item in audit.items if (item.sample_id, item.segment) in by_place}),
        "confidence": CONFIDENCE,
        "labels": {name: figures(units, CLASS_NAMES, whole) for name, units in labels.items()},
        "facts": {name: figures(units, FACT_CLASSES, with_facts[name]) for name, units in facts.items()},
        "disagreements": [
            _disagreement(unit, name) for name, units in labels.items() for unit in units if _differs(unit)
        ],
    }


def _label_units(audit: Audit, by_place: Mapping[SegmentPlace, Sequence[HumanAnswer]], name: str) -> list[_Unit]:
    units = []
    for item in audit.items:
        given = by_place.get((item.sample_id, item.segment), ())
        votes = {answer.annotator: answer.labels[name] for answer in given if name in answer.labels}
        units.append(_Unit(item, item.labels[name], votes))
    return units


def _fact_units(audit: Audit, by_place: Mapping[SegmentPlace, Sequence[HumanAnswer]], name: str) -> list[_Unit]:
    units = []
    for item in audit.items:
        given = by_place.get((item.sample_id, item.segment), ())
        for index, (fact, verdict) in enumerate(zip(item.facts, item.verdicts, strict=True)):
            judged = {answer.annotator: answer.facts[index] for answer in given if answer.facts is not None}
            votes = {who: _fact_class(right) for who, right in judged.items() if right is not None}
            if fact.type == name:
                units.append(_Unit(item, _fact_class(verdict), votes))
    return units


def _fact_class(right: bool) -> int:
    return 0 if right else 1


def _differs(unit: _Unit) -> bool:
    return unit.consensus is not None and unit.consensus != unit.ai


def _figures(
    audit: Audit,
    units: Sequence[_Unit],
    annotators: Sequence[str],
    classes: Sequence[str],
    among: int,
    draws: int,
) -> dict[str, Any]:
    rated = [unit for unit in units if unit.votes]
    judged = [(unit, said) for unit in rated if (said := unit.consensus) is not None]
    truth, predicted = [code for _, code in judged], [unit.ai for unit, _ in judged]
    matrix = [[unit.votes.get(who, MISSING) for unit in rated] for who in annotators]  # [annotators, units]
    with_ai = [*matrix, [unit.ai for unit in rated]]
    cells = {unit.item.cell for unit, _ in judged}
    covered = sum(audit.population[cell] for cell in cells) / among if among else None

    def estimates(weighted: bool) -> dict[str, Any]:
        options: dict[str, Any] = {"draws": draws, "seed": audit.seed}
        weights = _weights(audit, [unit for unit, _ in judged]) if weighted else None
        images = [unit.item.image_sha256 for unit, _ in judged]
        found = estimate_agreement(images, truth, predicted, len(classes), weights=weights, **options)
        weights = _weights(audit, rated) if weighted else None
        images = [unit.item.image_sha256 for unit in rated]
        found["alpha_with_ai"] = estimate_alpha(images, with_ai, len(classes), weights=weights, **options)
        if len(annotators) > 1:
            found["alpha_of_people"] = estimate_alpha(images, matrix, len(classes), weights=weights, **options)
        return {name: estimate.to_dict() for name, estimate in found.items()}

    return {
        "compared": len(judged),
        "unanswered": len(units) - len(rated),
        "tied": len(rated) - len(judged),
        "sample": estimates(weighted=False),
        "weighted": estimates(weighted=True),
        "covered": covered,
        "by_class": agreement(truth, predicted, classes).to_dict(),
    }


def _weights(audit: Audit, units: Sequence[_Unit]) -> list[float]:
    """Return one weight per unit; a segment with several facts stands for as many others with all its facts."""
    answered = {(unit.item.sample_id, unit.item.segment): unit.item.cell for unit in units}
    by_place = dict(zip(answered, cell_weights(list(answered.values()), audit.population), strict=True))
    return [by_place[unit.item.sample_id, unit.item.segment] for unit in units]


def _disagreement(unit: _Unit, name: str) -> dict[str, Any]:
    item = unit.item
    assert unit.consensus is not None
    return {
        "type": name,
        "people": CLASS_NAMES[unit.consensus],
        "ai": CLASS_NAMES[unit.ai],
        "text": item.text,
        "facts": [
            {"text": fact.text, "consistent": verdict}
            for fact, verdict in zip(item.facts, item.verdicts, strict=True)
            if fact.type == name
        ],
        "image": images_key(item.images),
        "sample_id": item.sample_id,
        "segment": item.segment,
    }
