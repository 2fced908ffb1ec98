"""HallusionBench (Guan et al., CVPR 2024, arXiv 2310.14566): yes/no questions in groups, 178 of 1,129 without an image.

Files and rules are those of tianyi-lab/HallusionBench at commit 744007c: ``HallusionBench.json``, and ``utils.py``, in
whose text the judge's prompt is read. The judge sees question, reference and answer, and says whether the answer is
correct, incorrect or unclear. What the script says about causes (language hallucination, visual illusion) is not
measured: a judge would have to compare pairs of answers.

Metrics: ``a_acc`` of all questions; ``q_acc`` of groups with the same question about other images; ``f_acc`` of images,
with all their questions; ``easy`` and ``hard`` of groups of questions about original and about edited images. Intervals
draw sets of images, as groups go across them.
"""

import ast
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np

from fgaif_ray.config import HallusionBenchConfig
from fgaif_ray.evaluation.benchmarks.base import (
    RATE,
    Benchmark,
    BenchmarkQuestion,
    JudgeQuestion,
    Reviews,
    Scores,
    review_text,
)
from fgaif_ray.evaluation.benchmarks.official_files import OfficialFiles
from fgaif_ray.evaluation.benchmarks.words import says
from fgaif_ray.statistics.intervals import Floats, ratios

QUESTIONS: Final = "HallusionBench.json"
SCRIPT: Final = "utils.py"
FUNCTION: Final = "evaluate_by_chatgpt"
CATEGORIES: Final = ("VD", "VS")
"""Visual-dependent questions, and those whose image only supplements what is asked."""
INCORRECT, CORRECT, UNCLEAR = 0, 1, 2
GROUPS: Final = ("q_acc", "f_acc", "easy", "hard")
_EDITED: Final = "2"
"""``visual_input`` of a question about an edited image, or one that shows other than what is known."""
KEYS: Final = (
    "question",
    "gt_answer_details",
    "category",
    "subcategory",
    "visual_input",
    "set_id",
    "figure_id",
    "question_id",
)
"""What every question has, as text."""
_PLACES: Final = ("question", "gt_answer_details", "answer")
_COLUMNS: Final = 2 + 2 * len(GROUPS)
"""Of all questions and of each category: right answers, answers; of each kind of groups: right groups, groups."""
_BIAS: Final = 4
"""Further columns: said yes, to be answered yes, wrong answers, wrong answers to what is not so."""


def judge_prompt(source: str) -> list[str] | None:
    """Read the parts of the judge's prompt in the official script, without running it.

    Returns:
        Texts, and between them the places ``{question}``, ``{gt_answer_details}`` and ``{answer}``; None where the
        script has another form.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == FUNCTION]
    parts = []
    for node in ast.walk(functions[0]) if functions else ():
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if (
            not isinstance(node, ast.Assign | ast.AugAssign)
            or not isinstance(target, ast.Name)
            or target.id != "prompt"
        ):
            continue
        value = node.value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            parts.append(value.value)
        elif isinstance(value, ast.Subscript):
            key = value.slice.value if isinstance(value.slice, ast.Constant) else "answer"
            parts.append(f"{{{key!s}}}")
    return parts if [part for part in parts if part[1:-1] in _PLACES] == [f"{{{place}}}" for place in _PLACES] else None


def read_verdict(review: str) -> int | None:
    """Read whether a judge finds an answer correct, as the official script does; None of an empty review."""
    text = review.lower()
    if not text.strip():
        return None
    return INCORRECT if "incorrect" in text else CORRECT if "correct" in text else UNCLEAR


class HallusionBench(Benchmark):
    """A folder with the official questions and, for the judge, the official ``utils.py``."""

    name: ClassVar[str] = "hallusionbench"
    title: ClassVar[str] = "HallusionBench"

    def __init__(self, config: HallusionBenchConfig) -> None:
        files = OfficialFiles(self.title, self.name, config.path)
        self.judged = config.reading == "judge"
        self._rows: dict[str, dict[str, Any]] = {}
        questions = []
        for number, row in files.checked_rows(QUESTIONS, **dict.fromkeys(KEYS, str)):
            if row["category"] not in CATEGORIES or row.get("gt_answer") not in ("0", "1"):
                what = f"the category {row['category']!r} and the answer {row.get('gt_answer')!r}"
                raise files.fault(QUESTIONS, f"entry {number} has {what}")
            id_ = "_".join([_set_of(row), row["figure_id"], row["question_id"]])
            if id_ in self._rows:
                raise files.fault(QUESTIONS, f"the question {id_} occurs twice")
            self._rows[id_] = row
            shown = row["visual_input"] != "0"
            image = str(row.get("filename") or "").removeprefix("./") if shown else ""
            if shown and not image:
                raise files.fault(QUESTIONS, f"entry {number} has no filename")
            questions.append(BenchmarkQuestion(id_, image, row["question"], config.max_tokens))
        self._prompt: list[str] = []
        if self.judged:
            prompt = judge_prompt(files.text(SCRIPT))
            if prompt is None:
                raise files.fault(
                    SCRIPT, f"its function {FUNCTION} makes no prompt of a question, a reference and an answer"
                )
            self._prompt = prompt
        self._ask(questions, files, config, reading=config.reading)

    def judge_questions(self, answers: Mapping[str, str]) -> list[JudgeQuestion]:
        asked = []
        for question in self.answered(answers) if self.judged else ():
            row = self._rows[question.id]
            filled = {"{question}": row["question"], "{gt_answer_details}": row["gt_answer_details"]}
            filled["{answer}"] = answers[question.id]
            text = "".join(filled.get(part, part) for part in self._prompt)
            asked.append(JudgeQuestion(question.id, False, [{"role": "user", "content": text}]))
        return asked

    def score(self, answers: Mapping[str, str], reviews: Reviews) -> Scores:
        asked = self.answered(answers)
        verdicts = {question.id: self._verdict(question.id, answers[question.id], reviews) for question in asked}
        right = {id_: self._is_right(id_, verdict) for id_, verdict in verdicts.items() if verdict is not None}
        ids = [question.id for question in asked if question.id in right]
        columns = np.zeros((len(ids), _COLUMNS * (1 + len(CATEGORIES)) + _BIAS))
        place = {id_: row for row, id_ in enumerate(ids)}
        for id_ in ids:
            row = self._rows[id_]
            yes = row["gt_answer"] == "1"
            for start in self._starts(row):
                columns[place[id_], start : start + 2] = [right[id_], 1]
            columns[place[id_], -_BIAS:] = [right[id_] == yes, yes, not right[id_], not right[id_] and not yes]
        for kind, members in self._groups(verdicts):
            if all(id_ in right for id_ in members):  # of a group with an unread answer nothing is known
                for start in self._starts(self._rows[members[0]]):
                    first = start + 2 + 2 * GROUPS.index(kind)
                    columns[place[members[0]], first : first + 2] += [all(right[id_] for id_ in members), 1]
        names = [f"{part}{figure}" for part in ("", "vd.", "vs.") for figure in ("a_acc", *GROUPS)]
        return Scores(
            tuple(ids),
            tuple(_set_of(self._rows[id_]) for id_ in ids),
            columns,
            scales=dict.fromkeys([*names, "yes_difference", "false_yes"], RATE),
            figures=_figures,
            counts={
                "unanswered": len(self.questions) - len(asked),
                "unrated": len(asked) - len(ids),
                "unclear": sum(verdict == UNCLEAR for verdict in verdicts.values()),
            },
        )

    def _verdict(self, id_: str, answer: str, reviews: Reviews) -> int | None:
        if self.judged:
            return read_verdict(review_text(reviews, id_))
        said = says(answer)
        if said is None:
            return UNCLEAR
        return CORRECT if (said == "Yes") == (self._rows[id_]["gt_answer"] == "1") else INCORRECT

    def _is_right(self, id_: str, verdict: int) -> bool:
        """A model that does not know without seeing is right, where the image supplements what is asked."""
        row = self._rows[id_]
        unseen = row["category"] == "VS" and row["figure_id"] == "0"
        return verdict == CORRECT or (unseen and verdict == UNCLEAR)

    def _groups(self, ids: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
        found: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for id_ in ids:
            row = self._rows[id_]
            same_question = (_set_of(row), row["question_id"])
            found["q_acc", *same_question].append(id_)
            found["hard" if row["visual_input"] == _EDITED else "easy", *same_question].append(id_)
            if row["category"] != "VS" or row["figure_id"] != "0":  # there is no figure
                found["f_acc", _set_of(row), row["figure_id"]].append(id_)
        return [(key[0], members) for key, members in found.items()]

    def _starts(self, row: Mapping[str, Any]) -> tuple[int, int]:
        """First column of all questions, and of those of its category."""
        return 0, _COLUMNS * (1 + CATEGORIES.index(row["category"]))


def _set_of(row: Mapping[str, Any]) -> str:
    return "_".join([row["category"], row["subcategory"], row["set_id"]])


def _figures(sums: Floats) -> Floats:
    parts = ratios(sums[:, 0:-_BIAS:2], sums[:, 1:-_BIAS:2])
    said, true, wrong, wrong_yes = sums[:, -_BIAS:].T
    difference = ratios(said - true, sums[:, 1])
    return np.concatenate([parts, np.stack([difference, ratios(wrong_yes, wrong)], axis=1)], axis=1)
