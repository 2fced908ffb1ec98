"""HumbleBench (Tong et al., arXiv 2509.09658): multiple choice about objects, attributes and relations.

The last of five options is always "None of the above". Rules are those of ``HumbleBench/utils`` in the repository
maifoundations/HumbleBench at commit 0a34e68: ``metrics.py``, and ``constant.py`` with the order to answer by a letter,
which is read from its text where the file is there.

The questions, ``metadata.jsonl`` of the data set on Hugging Face, were not at hand when this was written. Its keys are
those that the official code reads (``question``, ``label``, ``type``, ``question_id``), and ``file_name`` of the form
"imagefolder" in which the data set is published; ``image`` in its place is read too, as in official files of results.
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np

from fgaif_ray.config import HumbleBenchConfig
from fgaif_ray.evaluation.benchmarks.base import RATE, Benchmark, BenchmarkQuestion, Reviews, Scores
from fgaif_ray.evaluation.benchmarks.official_files import OfficialFiles, python_text
from fgaif_ray.statistics.intervals import Floats, ratios

QUESTIONS: Final = "metadata.jsonl"
CONSTANTS: Final = "constant.py"
ORDER: Final = "NOT_REASONING_POST_PROMPT"
LETTERS: Final = ("A", "B", "C", "D", "E")
NONE: Final = "E"
"""The letter of "None of the above"."""
_WORD: Final = re.compile(r"\b\w+\b")
_COUNTS: Final = 4 + len(LETTERS)
"""Columns before those of the types: right answers, answers, exactly E where that is right, questions where it is; and
answers read as each letter."""


def letters_in(answer: str) -> set[str]:
    """Find the letters of options among the words of an answer, in any case: "a" counts also as an article."""
    return {word.upper() for word in _WORD.findall(answer)} & set(LETTERS)


class HumbleBench(Benchmark):
    """A folder with the official ``metadata.jsonl``, and ``constant.py`` of the official code."""

    name: ClassVar[str] = "humblebench"
    title: ClassVar[str] = "HumbleBench"

    def __init__(self, config: HumbleBenchConfig) -> None:
        files = OfficialFiles(self.title, self.name, config.path)
        constants = files.find(CONSTANTS, f"HumbleBench/utils/{CONSTANTS}")
        order = None if constants is None else python_text(files.text(constants), ORDER)
        questions = []
        self._labels: dict[str, str] = {}
        self._types: dict[str, str] = {}
        for number, row in files.checked_rows(QUESTIONS, f"dataset/{QUESTIONS}", question=str, label=str, type=str):
            id_ = str(row.get("question_id"))
            if row["label"] not in LETTERS or id_ in self._labels:
                what = f"the label {row['label']!r}" if row["label"] not in LETTERS else "the id of another one"
                raise files.fault(QUESTIONS, f"question {id_} has {what}")
            text, label = row["question"], row["label"]
            if config.variant == "e" and label != NONE:
                text, label = without_option(text, label), NONE
            self._labels[id_], self._types[id_] = label, row["type"]
            questions.append(
                BenchmarkQuestion(id_, _image(row, files, number), text + (order or ""), config.max_tokens)
            )
        self._ask(questions, files, config, variant=config.variant, order_to_answer_by_letter=order is not None)

    def score(self, answers: Mapping[str, str], reviews: Reviews) -> Scores:  # noqa: ARG002
        asked = self.answered(answers)
        types = list(dict.fromkeys(self._types[question.id] for question in self.questions))
        columns = np.zeros((len(asked), _COUNTS + 2 * len(types)))
        unreadable = inexact = 0
        for row, question in enumerate(asked):
            answer, label = answers[question.id], self._labels[question.id]
            letters = letters_in(answer)
            right = letters == {label}
            unreadable += len(letters) != 1
            columns[row, :4] = [right, 1, label == NONE and answer == NONE, label == NONE]
            if len(letters) == 1:
                columns[row, 4 + LETTERS.index(letters.pop())] = 1
            inexact += right and label == NONE and answer != NONE
            start = _COUNTS + 2 * types.index(self._types[question.id])
            columns[row, start : start + 2] = [right, 1]
        names = ["accuracy", "e_accuracy", *(f"{kind.lower()}.accuracy" for kind in types)]
        return Scores.of(
            asked,
            columns,
            scales=dict.fromkeys([*names, *(f"said_{letter.lower()}" for letter in LETTERS)], RATE),
            figures=_figures,
            counts={
                "unanswered": len(self.questions) - len(asked),
                "not_one_letter": unreadable,
                "e_but_not_exactly": inexact,
            },
        )


def without_option(question: str, letter: str) -> str:
    """Take the line of an option away, as HumbleBench-E does; the first line is the question."""
    first, *options = question.strip().split("\n")
    return "\n".join([first, *(line for line in options if not line.strip().startswith(f"{letter}."))])


def _image(row: Mapping[str, Any], files: OfficialFiles, number: int) -> str:
    found = row.get("file_name") or row.get("image")
    if isinstance(found, Mapping):
        found = found.get("path")
    if not isinstance(found, str) or not found:
        raise files.fault(QUESTIONS, f"entry {number} has no file_name of an image")
    return found


def _figures(sums: Floats) -> Floats:
    right, answers, none_right, none = sums[:, :4].T
    overall = np.stack([ratios(right, answers), ratios(none_right, none)], axis=1)
    of_types = ratios(sums[:, _COUNTS::2], sums[:, _COUNTS + 1 :: 2])
    said = ratios(sums[:, 4:_COUNTS], answers[:, None])
    return np.concatenate([overall, of_types, said], axis=1)
