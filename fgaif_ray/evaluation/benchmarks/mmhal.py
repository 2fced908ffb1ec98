"""MMHal-Bench (Sun et al., arXiv 2309.14525): 96 questions, each answer rated from 0 to 6 by a judge.

The judge does not see the image. Its prompt is read from the official script, which is beside the questions. A rating
that cannot be read is left out and counted separately; the official script takes it for 0.
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np

from fgaif_ray.config import MMHalConfig
from fgaif_ray.evaluation.benchmarks.base import (
    RATE,
    Benchmark,
    BenchmarkQuestion,
    JudgeQuestion,
    Reviews,
    Scores,
    review_text,
)
from fgaif_ray.evaluation.benchmarks.official_files import OfficialFiles, python_text
from fgaif_ray.statistics.intervals import Floats, ratios

TYPES: Final = 8
"""Types of question; the official file has them in turn, and its script goes by position modulo 8."""
BEST: Final = 6
HALLUCINATED_BELOW: Final = 3
SCRIPT: Final = "eval_gpt_mmhal.py"
TEMPLATE: Final = "template"
_RATING: Final = re.compile(r"rating\W{0,4}:\W{0,4}(\d+)", re.IGNORECASE)
_PLACE: Final = "{}"


def read_rating(review: str) -> int | None:
    """Read the rating from 0 to 6 in a review; None without one, or with several that differ."""
    found = {int(number) for number in _RATING.findall(review)}
    rating = found.pop() if len(found) == 1 else None
    return rating if rating is not None and rating <= BEST else None


class MMHal(Benchmark):
    """A folder with MMHal-Bench's ``response_template.json`` and ``eval_gpt_mmhal.py``."""

    name: ClassVar[str] = "mmhal"
    title: ClassVar[str] = "MMHal-Bench"
    judged = True

    def __init__(self, config: MMHalConfig) -> None:
        files = OfficialFiles(self.title, self.name, config.path)
        name = "response_template.json"
        self._rows: list[dict[str, Any]] = []
        questions = []
        for number, row in files.checked_rows(name, question=str, gt_answer=str, image_content=list):
            self._rows.append(row)
            image = str(row.get("image_src") or row.get("image_id") or "").rsplit("/", 1)[-1]
            if not image:
                raise files.fault(name, f"entry {number} has neither image_src nor image_id")
            questions.append(BenchmarkQuestion(str(number - 1), image, row["question"], config.max_tokens))
        self._types = [str(row.get("question_type", index % TYPES)) for index, row in enumerate(self._rows)]
        template = python_text(files.text(SCRIPT), TEMPLATE)
        if template is None or template.count(_PLACE) != 4:
            raise files.fault(SCRIPT, f"it has no text {TEMPLATE!r} with four places to fill in")
        self._template = template.split(_PLACE)
        self._ask(questions, files, config)

    def judge_questions(self, answers: Mapping[str, str]) -> list[JudgeQuestion]:
        asked = []
        for question in self.answered(answers):
            row = self._rows[int(question.id)]
            contents = ", ".join(str(content) for content in row["image_content"])
            filled = [contents, row["question"], row["gt_answer"], answers[question.id]]
            # Not str.format: the inserted texts may hold braces.
            text = "".join(part for pair in zip(self._template, [*filled, ""], strict=True) for part in pair)
            asked.append(JudgeQuestion(question.id, False, [{"role": "user", "content": text}]))
        return asked

    def score(self, answers: Mapping[str, str], reviews: Reviews) -> Scores:
        ratings = {one.id: read_rating(review_text(reviews, one.id)) for one in self.answered(answers)}
        rated = [question for question in self.questions if ratings.get(question.id) is not None]
        types = list(dict.fromkeys(self._types[int(question.id)] for question in self.questions))
        columns = np.zeros((len(rated), 3 + 2 * len(types)))
        for row, question in enumerate(rated):
            rating = ratings[question.id]
            assert rating is not None
            kind = types.index(self._types[int(question.id)])
            columns[row, :3] = [rating, rating < HALLUCINATED_BELOW, 1]
            columns[row, 3 + 2 * kind : 5 + 2 * kind] = [rating, 1]
        return Scores.of(
            rated,
            columns,
            scales={"score": 1.0, "hallucination_rate": RATE} | {f"{kind}.score": 1.0 for kind in types},
            figures=_figures,
            counts={"unanswered": len(self.questions) - len(ratings), "unrated": len(ratings) - len(rated)},
        )


def _figures(sums: Floats) -> Floats:
    overall = ratios(sums[:, :2], np.repeat(sums[:, 2:3], 2, axis=1))
    return np.concatenate([overall, ratios(sums[:, 3::2], sums[:, 4::2])], axis=1)
