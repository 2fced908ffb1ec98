"""POPE: yes/no questions about objects (Li et al., "Evaluating Object Hallucination in Large Vision-Language Models",
arXiv 2305.10355), built from object lists or read from the published files, scored with the official rules.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from fgaif_ray.errors import UserError

Strategy = Literal["random", "popular", "adversarial"]
STRATEGIES: Final[tuple[Strategy, ...]] = ("random", "popular", "adversarial")
FIGURES: Final = ("accuracy", "precision", "recall", "f1", "yes_ratio")


@dataclass(frozen=True, slots=True)
class PopeQuestion:
    """One question of one split.

    Example: ``PopeQuestion(1, "COCO_val2014_000000310196.jpg", "Is there a snowboard in the image?", True)``
    """

    question_id: int | str
    image: str
    text: str
    label: bool
    """Whether "yes" is right."""


def ask_about(name: str) -> str:
    """Return POPE's question about an object."""
    return f"Is there {'an' if name[0].lower() in 'aeiou' else 'a'} {name} in the image?"


def build_questions(
    objects: Mapping[str, Iterable[str]], strategy: Strategy, *, questions_per_image: int = 6, seed: int = 0
) -> list[PopeQuestion]:
    """Build a split from the objects of each image; half of each image's questions are answered yes, half no.

    Absent objects are, by strategy (POPE section 4.1): ``random`` any; ``popular`` the most frequent over all
    images; ``adversarial`` those that co-occur most often with the objects that are there. The yes questions of an
    image are the same in every strategy. An image with too few objects, or too few absent ones, gets fewer questions.

    Args:
        objects: image -> names of the objects in it.
        strategy: how absent objects are chosen.
        questions_per_image: an even number.
        seed: seed of the choices; they depend on the order of the images, not on their names.

    Raises:
        ValueError: ``questions_per_image`` is odd or less than 2.
    """
    if questions_per_image < 2 or questions_per_image % 2:
        raise ValueError(f"questions_per_image must be even and at least 2, not {questions_per_image}")
    present = {image: sorted(set(names)) for image, names in objects.items()}
    frequency = Counter(name for names in present.values() for name in names)
    together: dict[str, Counter[str]] = {name: Counter() for name in frequency}
    for names in present.values():
        for name in names:
            together[name].update(other for other in names if other != name)
    questions: list[PopeQuestion] = []
    for position, (image, names) in enumerate(present.items()):
        absent = sorted(set(frequency).difference(names))
        pairs = min(questions_per_image // 2, len(names), len(absent))
        yes = random.Random(f"{seed}/{position}/yes").sample(names, pairs)
        if strategy == "random":
            no = random.Random(f"{seed}/{position}/no").sample(absent, pairs)
        elif strategy == "popular":
            no = _highest(absent, frequency, pairs)
        else:
            no = _highest(absent, sum((together[name] for name in names), Counter()), pairs)
        for present_name, absent_name in zip(yes, no, strict=True):
            for name, label in ((present_name, True), (absent_name, False)):
                questions.append(PopeQuestion(len(questions) + 1, image, ask_about(name), label))
    return questions


def _highest(names: Sequence[str], counts: Mapping[str, int], number: int) -> list[str]:
    return sorted(names, key=lambda name: (-counts[name], name))[:number]


def parse_questions(text: str, path: str | Path) -> list[PopeQuestion]:
    """The questions of a published POPE file: JSON lines, or one JSON array (the files built on A-OKVQA and GQA).

    Args:
        text: what the file holds.
        path: of the file, for messages.

    Raises:
        UserError: the file has another form; the message names the place.
    """
    try:
        if text.lstrip().startswith("["):
            entries = list(enumerate(json.loads(text), start=1))
        else:
            entries = [(n, json.loads(line)) for n, line in enumerate(text.splitlines(), start=1) if line.strip()]
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not a POPE file: {error.msg} (line {error.lineno}).") from error
    return [_question(path, number, entry) for number, entry in entries]


def _question(path: str | Path, number: int, entry: Any) -> PopeQuestion:
    keys = ("question_id", "image", "text", "label")
    if not isinstance(entry, dict) or any(key not in entry for key in keys):
        raise UserError(f"{path}, entry {number}: a POPE question has the keys {', '.join(keys)}.")
    if entry["label"] not in ("yes", "no"):
        raise UserError(f"{path}, entry {number}: the label must be yes or no, not {entry['label']!r}.")
    return PopeQuestion(entry["question_id"], entry["image"], entry["text"], entry["label"] == "yes")


def says_yes(answer: str) -> bool:
    """Read an answer by the official rule: "no" if No, not or no is a word before the first full stop, else "yes".

    The rule has its sharp edges ("No!" and "NO" count as yes), kept because every published metric has them. Only outer
    white space is removed first, as answers are written to the official answer files.
    """
    words = answer.strip().split(".")[0].replace(",", "").split(" ")
    return not any(word in ("No", "not", "no") for word in words)


def score_answers(labels: Sequence[bool], answers: Sequence[bool]) -> dict[str, Any]:
    """Compute the official metrics; "yes" is the positive class.

    Args:
        labels: ``[questions]`` whether "yes" is right.
        answers: ``[questions]`` whether "yes" was said, in the same order.

    Returns:
        FIGURES and ``questions``; a metric whose denominator is zero is None, as is the precision of a model that
        never says yes.

    Raises:
        ValueError: the lengths differ.
    """
    pairs = Counter(zip(labels, answers, strict=True))
    hits, misses = pairs[True, True], pairs[True, False]
    false_alarms, rejections = pairs[False, True], pairs[False, False]
    total = len(labels)

    def ratio(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    return {
        "questions": total,
        "accuracy": ratio(hits + rejections, total),
        "precision": ratio(hits, hits + false_alarms),
        "recall": ratio(hits, hits + misses),
        "f1": ratio(2 * hits, 2 * hits + false_alarms + misses),
        "yes_ratio": ratio(hits + false_alarms, total),
    }


def score_questions(questions: Sequence[PopeQuestion], answers: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    """Score the answers to a split, joined by image and question text, never by position.

    Args:
        questions: the split.
        answers: ``(image, question text)`` -> what the model said.

    Raises:
        ValueError: a question has no answer.
    """
    missing = next((q for q in questions if (q.image, q.text) not in answers), None)
    if missing is not None:
        raise ValueError(f"no answer to {missing.text!r} about {missing.image}")
    return score_answers([q.label for q in questions], [says_yes(answers[q.image, q.text]) for q in questions])


def score_splits(
    splits: Mapping[str, Sequence[PopeQuestion]], answers: Mapping[tuple[str, str], str]
) -> dict[str, Any]:
    """Return the headline metrics (means over the splits, None where a split has none) and ``splits``."""
    scores = {name: score_questions(questions, answers) for name, questions in splits.items()}
    headline: dict[str, Any] = {}
    for figure in FIGURES:
        values = [score[figure] for score in scores.values()]
        headline[figure] = None if None in values or not values else sum(values) / len(values)
    return headline | {"splits": scores}
