"""From verified facts to labels, and the label files of the official FGAIF code.

A segment gets one label per fact type (FGAIF section 3.2): absent without facts of the type,
consistent where all of them hold in the image, hallucinated where at least one does not.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TextIO

from fgaif_ray.records import ABSENT, CONSISTENT, HALLUCINATED, images_key

_OFFICIAL_CODES: Final = {ABSENT: -1, CONSISTENT: 0, HALLUCINATED: 1}
_WORD_MARKERS: Final = " \t\n\u2581\u0120"  # white space, and the space marks of sentencepiece and byte-level BPE


@dataclass(frozen=True)
class LabelledResponse:
    """One line of the official form: the images' names, the segments, and a label code of each type for each.

    ``labels`` is ``[segments]`` tuples of our codes in the order of the run's fact types.
    """

    images: tuple[str, ...]
    segments: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...]


def label_of(verdicts: Sequence[bool]) -> int:
    """Return the label code of one fact type in one segment, from the verdicts on its facts (True: consistent)."""
    if not verdicts:
        return ABSENT
    return CONSISTENT if all(verdicts) else HALLUCINATED


def segment_labels(verdicts: Iterable[tuple[str, bool]], types: Sequence[str]) -> dict[str, int]:
    """Return the label code per fact type of one segment.

    Args:
        verdicts: ``(fact type, consistent)`` of every fact of the segment.
        types: the fact types to label.

    Raises:
        ValueError: an unknown fact type.
    """
    by_type: dict[str, list[bool]] = {fact_type: [] for fact_type in types}
    for fact_type, consistent in verdicts:
        if fact_type not in by_type:
            raise ValueError(f"unknown fact type {fact_type!r}")
        by_type[fact_type].append(consistent)
    return {fact_type: label_of(facts) for fact_type, facts in by_type.items()}


def yes_probability(top_logprobs: Mapping[str, float]) -> float | None:
    """Return P(yes) / (P(yes) + P(no)) of the first answer token.

    Args:
        top_logprobs: natural log-probability of each likely first token. Case and a leading space make no
            difference: the variants of a word are added.

    Returns:
        A probability, or None when neither word is among the tokens: such an answer is not a verdict.
    """
    logprobs: dict[str, list[float]] = {"yes": [], "no": []}
    for token, logprob in top_logprobs.items():
        word = token.strip(_WORD_MARKERS).casefold()
        if word in logprobs and logprob > -math.inf:
            logprobs[word].append(logprob)
    likeliest = max((logprob for values in logprobs.values() for logprob in values), default=None)
    if likeliest is None:
        return None
    yes, no = (sum(math.exp(value - likeliest) for value in logprobs[word]) for word in ("yes", "no"))
    return yes / (yes + no)


def is_consistent(p_consistent: float, threshold: float) -> bool:
    """Judge a fact: consistent at P(yes) >= threshold."""
    return p_consistent >= threshold


def to_official(code: int) -> int:
    """Convert our label code (0 absent, 1 consistent, 2 hallucinated) to the official form (-1, 0, 1).

    Raises:
        ValueError: not a label code.
    """
    if code not in _OFFICIAL_CODES:
        raise ValueError(f"{code} is not a label code")
    return _OFFICIAL_CODES[code]


def write_official(stream: TextIO, rows: Iterable[LabelledResponse]) -> None:
    """Write rows as JSON lines ``{"image", "sub": [...], "labels": [[o, a, r], ...]}``; several images are a list."""
    for row in rows:
        labels = [[to_official(code) for code in codes] for codes in row.labels]
        line = {"image": images_key(row.images), "sub": list(row.segments), "labels": labels}
        stream.write(json.dumps(line, ensure_ascii=False) + "\n")
