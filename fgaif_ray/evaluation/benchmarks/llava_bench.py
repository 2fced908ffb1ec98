"""LLaVA-Bench (Liu et al., arXiv 2304.08485), on COCO (90 questions) or in the wild (60).

A judge scores an answer beside a reference from 1 to 10 each. Every pair is judged in both orders and averaged; the
relative score is the mean of the answers' scores in percent of the mean of the reference's. An answer counts only if
both reviews can be read; the others are counted separately (the official script takes -1 for them).
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np

from fgaif_ray.config import LlavaBenchConfig
from fgaif_ray.evaluation.benchmarks.base import (
    Benchmark,
    BenchmarkQuestion,
    JudgeQuestion,
    Reviews,
    Scores,
    review_text,
)
from fgaif_ray.evaluation.benchmarks.official_files import OfficialFiles
from fgaif_ray.statistics.intervals import Floats, ratios

QUESTIONS: Final = ("qa90_questions.jsonl", "questions.jsonl")
REFERENCES: Final = ("qa90_gpt4_answer.jsonl", "answers_gpt4.jsonl")
CONTEXTS: Final = ("caps_boxes_coco2014_val_80.jsonl", "context.jsonl")
RULES: Final = "rule.json"
SCRIPTS: Final = ("eval_gpt_review_visual.py", "eval_gpt_review_bench.py")
WILD: Final = "llava_bench_"
"""Prefix of the wild set's categories in the rules."""
SCALE: Final = (1.0, 10.0)
_SYSTEM: Final = re.compile(r"['\"]role['\"]:\s*['\"]system['\"],\s*['\"]content['\"]:\s*(['\"])(.+?)\1")


def read_scores(review: str) -> tuple[float, float] | None:
    """Read the two scores in the first line of a review; None unless it holds two numbers from 1 to 10."""
    parts = review.strip().split("\n", 1)[0].replace(",", " ").split()
    try:
        scores = [float(part) for part in parts]
    except ValueError:
        return None
    if len(scores) != 2 or not all(SCALE[0] <= score <= SCALE[1] for score in scores):
        return None
    return scores[0], scores[1]


class LlavaBench(Benchmark):
    """A folder with the questions, reference answers and contexts of one LLaVA-Bench, and the judge's ``rule.json``."""

    name: ClassVar[str] = "llava_bench"
    title: ClassVar[str] = "LLaVA-Bench"
    judged = True

    def __init__(self, config: LlavaBenchConfig) -> None:
        files = OfficialFiles(self.title, self.name, config.path)
        questions = []
        self._categories: dict[str, str] = {}
        for _, row in files.checked_rows(*QUESTIONS, image=str, category=str, text=str):
            id_ = str(row.get("question_id"))
            self._categories[id_] = row["category"]
            questions.append(BenchmarkQuestion(id_, row["image"], row["text"], config.max_tokens))
        references = files.checked_rows(*REFERENCES, text=str)
        self._references = {str(row.get("question_id")): row["text"] for _, row in references}
        self._contexts: dict[str, str] = {}
        self._wild = False
        for _, row in files.checked_rows(*CONTEXTS, image=str):
            self._wild = "caption" in row
            self._contexts[row["image"]] = _context(row)
        self._rules = self._read_rules(files)
        script = files.find(*SCRIPTS)
        found = None if script is None else _SYSTEM.search(files.text(script))
        self._system = None if found is None else found[2]
        for question in questions:
            if question.id not in self._references or question.image not in self._contexts:
                raise files.fault(QUESTIONS[0], f"question {question.id} has no reference answer or no context")
        which = "in the wild" if self._wild else "COCO"
        self._ask(questions, files, config, set=which, system_message=self._system is not None)

    def _read_rules(self, files: OfficialFiles) -> dict[str, tuple[str, str]]:
        """Category -> the role's name and the judge's task."""
        rules = files.object(RULES)
        found = {}
        for category in dict.fromkeys(self._categories.values()):
            rule = rules.get(f"{WILD}{category}" if self._wild else category)
            if not isinstance(rule, dict) or not {"role", "prompt"} <= set(rule):
                raise files.fault(RULES, f"it has no rule for the category {category!r}")
            found[category] = (rule["role"], rule["prompt"])
        return found

    def judge_questions(self, answers: Mapping[str, str]) -> list[JudgeQuestion]:
        asked = []
        for question in self.answered(answers):
            pair = [self._references[question.id], answers[question.id]]
            for swapped in (False, True):
                messages = [] if self._system is None else [{"role": "system", "content": self._system}]
                text = self._text(question, pair[::-1] if swapped else pair)
                asked.append(JudgeQuestion(question.id, swapped, [*messages, {"role": "user", "content": text}]))
        return asked

    def _text(self, question: BenchmarkQuestion, pair: list[str]) -> str:
        role, task = self._rules[self._categories[question.id]]
        blocks = [f"[Context]\n{self._contexts[question.image]}", f"[Question]\n{question.prompt}"]
        for number, answer in enumerate(pair, start=1):
            blocks += [f"[{role} {number}]\n{answer}", f"[End of {role} {number}]"]
        return "\n\n".join([*blocks, f"[System]\n{task}", ""])

    def score(self, answers: Mapping[str, str], reviews: Reviews) -> Scores:
        asked = self.answered(answers)
        categories = list(dict.fromkeys(self._categories[question.id] for question in self.questions))
        kept: list[BenchmarkQuestion] = []
        rows = []
        for question in asked:
            scores = self._scores(question, reviews)
            if scores is not None:
                column = 2 * categories.index(self._categories[question.id])
                row = np.zeros(2 * len(categories))
                row[column : column + 2] = scores
                kept.append(question)
                rows.append(row)
        return Scores.of(
            kept,
            np.array(rows).reshape(len(rows), 2 * len(categories)),
            scales=dict.fromkeys(["all", *categories], 1.0),
            figures=_figures,
            counts={"unanswered": len(self.questions) - len(asked), "unrated": len(asked) - len(kept)},
        )

    def _scores(self, question: BenchmarkQuestion, reviews: Reviews) -> tuple[float, float] | None:
        """Return the scores of the answer and of the reference, each the mean over both orders."""
        first, second = (read_scores(review_text(reviews, question.id, swapped=swapped)) for swapped in (False, True))
        if first is None or second is None:
            return None
        return (first[1] + second[0]) / 2, (first[0] + second[1]) / 2


def _figures(sums: Floats) -> Floats:
    answers, references = sums[:, 0::2], sums[:, 1::2]
    overall = ratios(answers.sum(axis=1, keepdims=True), references.sum(axis=1, keepdims=True))
    return np.concatenate([overall, ratios(answers, references)], axis=1) * 100


def _context(row: Mapping[str, Any]) -> str:
    if "caption" in row:
        caption = row["caption"]
        return "\n".join(caption) if isinstance(caption, list) else str(caption)
    boxes = [f"{instance['category']}: {instance['bbox']}" for instance in row.get("instances", [])]
    return "\n".join(row.get("captions", [])) + "\n\n" + "\n".join(boxes)
