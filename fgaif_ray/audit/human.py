"""People's answers about segments: the audit page's export and Label Studio's JSON export.

The page's export, version 1 (``audit.js`` writes it)::

    {"format": "fgaif-audit-answers", "version": 1, "audit": "<id>", "annotator": "<name>", "exported_at": "<ISO 8601>",
     "answers": [{"sample_id": "<hex>", "segment": 0, "text": "<segment>",
                  "facts": ["right" | "wrong" | "unsure" | null, ...],
                  "labels": {"<fact type>":
                             "absent" | "consistent" | "hallucinated" | "unsure" | null}}]}

null is a question that was not answered, "unsure" one whose answer is unknown; neither counts as a label.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fgaif_ray import storage
from fgaif_ray.audit import label_studio
from fgaif_ray.errors import UserError
from fgaif_ray.records import CLASS_NAMES

ANSWERS_FORMAT: Final = "fgaif-audit-answers"
ANSWERS_VERSION: Final = 1
UNSURE: Final = "unsure"
FACT_VERDICTS: Final = {"right": True, "wrong": False, UNSURE: None, None: None}
LABEL_CODES: Final = {name: code for code, name in enumerate(CLASS_NAMES)}
_DEFAULT_ANNOTATOR: Final = "annotator"

SegmentPlace = tuple[str, int]
"""Sample id, number of the segment in the response."""


@dataclass(frozen=True, slots=True)
class HumanAnswer:
    """One person's answers about one segment."""

    audit: str
    """The audit that asked."""
    annotator: str
    sample_id: str
    segment: int
    text: str
    labels: Mapping[str, int]
    """Label code by fact type; types without a definite answer are left out."""
    facts: tuple[bool | None, ...] | None
    """Whether each fact is right, None where that is unknown; None where facts were not asked about."""

    @property
    def place(self) -> SegmentPlace:
        """Return which segment this is about."""
        return self.sample_id, self.segment


def read_answers(paths: Iterable[str], types: Sequence[str]) -> list[HumanAnswer]:
    """Read answer files, of either kind, about these fact types.

    Raises:
        UserError: a file cannot be read or is of neither kind, an answer is not of the form, or a person answers twice
            about the same segment.
    """
    answers: list[HumanAnswer] = []
    origin: dict[tuple[str, SegmentPlace], str] = {}
    for path in paths:
        found = _read_file(path, types)
        if not found:
            raise UserError(f"{path} holds no answers: label some segments and export again.")
        for answer in found:
            key = (answer.annotator, answer.place)
            if key in origin:
                raise UserError(
                    f"{path}: {answer.annotator} has answered about segment {answer.segment} of "
                    f"{answer.sample_id} already (in {origin[key]}): give each person's last export once, and "
                    "different people different names."
                )
            origin[key] = path
        answers += found
    return answers


def majority_labels(answers: Iterable[HumanAnswer]) -> dict[SegmentPlace, tuple[str, dict[str, int]]]:
    """Return each segment's text and, by fact type, the label that most people gave; ties are left out."""
    votes: dict[SegmentPlace, dict[str, Counter[int]]] = {}
    texts: dict[SegmentPlace, str] = {}
    for answer in answers:
        texts[answer.place] = answer.text
        for name, label in answer.labels.items():
            votes.setdefault(answer.place, {}).setdefault(name, Counter())[label] += 1
    chosen: dict[SegmentPlace, tuple[str, dict[str, int]]] = {}
    for place, text in texts.items():
        winners = {name: majority(counts) for name, counts in votes.get(place, {}).items()}
        chosen[place] = text, {name: label for name, label in winners.items() if label is not None}
    return chosen


def majority(votes: Counter[int]) -> int | None:
    """Return the value with the most votes, None in a tie or without votes."""
    leaders = votes.most_common(2)
    if not leaders or (len(leaders) == 2 and leaders[0][1] == leaders[1][1]):
        return None
    return leaders[0][0]


def _read_file(path: str, types: Sequence[str]) -> list[HumanAnswer]:
    try:
        content = json.loads(storage.read_bytes(path))
    except OSError as error:
        raise UserError(f"Cannot read the answers {path}: give an existing file.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: give the file that the audit page or Label Studio exported.") from error
    if isinstance(content, list):
        return [_from_label_studio(answer) for answer in label_studio.parse_export(content, path, types)]
    if isinstance(content, dict) and content.get("format") == ANSWERS_FORMAT:
        return _parse_answers(content, path, types)
    raise UserError(f"{path} holds no answers: give the file that the audit page or Label Studio (as JSON) exported.")


def _from_label_studio(answer: label_studio.StudioAnswer) -> HumanAnswer:
    labels = {name: LABEL_CODES[word] for name, word in answer.choices.items() if word != UNSURE}
    task = answer.task
    return HumanAnswer(task.audit, answer.annotator, task.sample_id, task.segment, task.text, labels, None)


def _parse_answers(content: Mapping[str, Any], path: str, types: Sequence[str]) -> list[HumanAnswer]:
    if content.get("version") != ANSWERS_VERSION:
        raise UserError(
            f"{path} has version {content.get('version')!r} of the answer form, this program reads {ANSWERS_VERSION}: "
            "export it from a page of this version."
        )
    audit, annotator, entries = content.get("audit"), content.get("annotator"), content.get("answers")
    if not isinstance(audit, str) or not isinstance(annotator, str) or not isinstance(entries, list):
        raise UserError(f"{path} lacks its audit, annotator or answers: export it from the page again.")
    answers = []
    for number, entry in enumerate(entries, start=1):
        try:
            answers.append(_parse_answer(entry, audit, annotator.strip() or _DEFAULT_ANNOTATOR, types))
        except ValueError as error:
            raise UserError(f"{path}: answer {number} {error}: export it from the page again.") from error
    return answers


def _parse_answer(entry: object, audit: str, annotator: str, types: Sequence[str]) -> HumanAnswer:
    if not isinstance(entry, dict):
        raise ValueError("is not an object")
    sample_id, segment, text = entry.get("sample_id"), entry.get("segment"), entry.get("text")
    if not isinstance(sample_id, str) or type(segment) is not int or not isinstance(text, str):
        raise ValueError("does not say which segment it is about (sample_id, segment, text)")
    given, verdicts = entry.get("labels"), entry.get("facts")
    if not isinstance(given, dict) or not given.keys() <= set(types):
        raise ValueError(f"needs labels by type ({', '.join(types)})")
    if not isinstance(verdicts, list):
        raise ValueError("needs a list of facts")
    _check_words("label", given.values(), [*LABEL_CODES, UNSURE])
    _check_words("fact", verdicts, [word for word in FACT_VERDICTS if word is not None])
    labels = {name: LABEL_CODES[word] for name, word in given.items() if word in LABEL_CODES}
    facts = tuple(FACT_VERDICTS[word] for word in verdicts)
    return HumanAnswer(audit, annotator, sample_id, segment, text, labels, facts)


def _check_words(what: str, given: Iterable[object], known: Sequence[str]) -> None:
    for word in given:
        if word is not None and word not in known:
            raise ValueError(f"has the {what} {word!r}, which is none of {', '.join(known)}")
