"""The truth: rules that read the claims of a text about a scene and tell which of them hold.

Only evaluation, the check of labels and the pre-training of the annotator use it. No stage of the method does.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fgaif_ray.records import ABSENT, CONSISTENT, FACT_TYPES, HALLUCINATED
from fgaif_ray.shapes.claims import RELATIONS, Claim
from fgaif_ray.shapes.scenes import COLORS, SHAPES, SIZES, Scene

_SHAPE = "|".join(SHAPES)
_ADJECTIVE = "|".join((*COLORS, *SIZES))
_RELATION = "|".join(RELATIONS.values())
_VALUE_OF: Final = {phrase: value for value, phrase in RELATIONS.items()}
_INDEFINITE = rf"\b(?:an?|another|one)\s+(?P<adjectives>(?:(?:{_ADJECTIVE})\s+)*)(?P<introduced>{_SHAPE})\b"
_DEFINITE = rf"\b(?:the\s+(?P<named>{_SHAPE})\b|(?P<pronoun>it|which|that)(?=\s+is\b))"
_PREDICATE = (
    rf"\bis\s+(?:also\s+)?(?:(?P<relation>{_RELATION})\s+(?:the|an?)\s+(?:(?:{_ADJECTIVE})\s+)*(?P<other>{_SHAPE})\b"
    rf"|(?P<attributes>(?:{_ADJECTIVE})(?:\s+and\s+(?:{_ADJECTIVE}))*)\b)"
)
_PATTERN: Final = re.compile(f"{_PREDICATE}|{_INDEFINITE}|{_DEFINITE}", re.IGNORECASE)


def read_claims(text: str, spans: Sequence[tuple[int, int]]) -> list[list[Claim]]:
    """Read the atomic claims of each segment. Pronouns stand for the latest subject of the whole text.

    Args:
        text: a description of a scene.
        spans: ``(start, end)`` character spans of its segments, in order.
    """
    claims: list[list[Claim]] = [[] for _ in spans]
    subject: str | None = None
    for match in _PATTERN.finditer(text):
        index = next((i for i, (start, end) in enumerate(spans) if start <= match.start() < end), None)
        if index is None:
            continue
        found = {key: value.lower() for key, value in match.groupdict().items() if value}
        if "introduced" in found:
            subject = found["introduced"]
            claims[index].append(Claim("existence", subject))
            for adjective in found.get("adjectives", "").split():
                claims[index].append(Claim("attribute", subject, adjective))
        elif "named" in found:
            subject = found["named"]
        elif "relation" in found and subject is not None:
            value = _VALUE_OF[found["relation"]]
            claims[index].append(Claim("relation", subject, value, found["other"]))
        elif "attributes" in found and subject is not None:
            for adjective in re.split(r"\s+and\s+", found["attributes"]):
                claims[index].append(Claim("attribute", subject, adjective))
    return claims


def label_claims(scene: Scene, claims: Sequence[Claim]) -> dict[str, int]:
    """The label codes of a segment per fact type, by the rule of the method (one wrong fact is enough)."""
    labels = {}
    for kind in FACT_TYPES:
        truths = [claim.holds(scene) for claim in claims if claim.type == kind]
        labels[kind] = ABSENT if not truths else CONSISTENT if all(truths) else HALLUCINATED
    return labels


@dataclass(frozen=True, slots=True)
class Coverage:
    """Coverage of a scene by a text: true statements found, over those there are to find."""

    objects_found: int
    objects: int
    attributes_found: int
    attributes: int


def measure_coverage(scene: Scene, claims: Sequence[Sequence[Claim]]) -> Coverage:
    """Count the true objects, and their true colours and sizes, that the claims state."""
    said = {claim for segment in claims for claim in segment}
    objects = {Claim("existence", item.shape) for item in scene.objects}
    attributes = {Claim("attribute", item.shape, value) for item in scene.objects for value in (item.color, item.size)}
    return Coverage(len(objects & said), len(objects), len(attributes & said), len(attributes))
