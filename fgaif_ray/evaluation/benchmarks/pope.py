"""POPE (Li et al., arXiv 2305.10355): the published files, the official reading and the official metrics.

The three splits are joined with answers by id and text, never by position: the random split has had 2,910 and 3,000
questions. The headline is the mean over the splits.
"""

from collections.abc import Mapping
from typing import ClassVar, Final

import numpy as np

from fgaif_ray import storage
from fgaif_ray.config import PopeConfig
from fgaif_ray.evaluation.benchmarks.base import RATE, Benchmark, BenchmarkQuestion, Reviews, Scores
from fgaif_ray.evaluation.benchmarks.official_files import OfficialFiles
from fgaif_ray.evaluation.pope import FIGURES, STRATEGIES, parse_questions, says_yes
from fgaif_ray.statistics.intervals import Floats, ratios

COUNTS: Final = 4
"""Columns of a split: hits, misses, false alarms, right rejections; "yes" is the positive class."""


class Pope(Benchmark):
    """A POPE folder: ``{prefix}_pope_{random,popular,adversarial}.json``."""

    name: ClassVar[str] = "pope"
    title: ClassVar[str] = "POPE"

    def __init__(self, config: PopeConfig) -> None:
        files = OfficialFiles(self.title, self.name, config.path)
        found: list[BenchmarkQuestion] = []
        self._labels: dict[str, bool] = {}
        for split in STRATEGIES:
            name = f"{config.prefix}_pope_{split}.json"
            for entry in parse_questions(files.text(name), storage.join(config.path, name)):
                question = BenchmarkQuestion(f"{split}/{entry.question_id}", entry.image, entry.text, config.max_tokens)
                if question.id in self._labels:
                    raise files.fault(name, f"the question id {entry.question_id} occurs twice")
                self._labels[question.id] = entry.label
                found.append(question)
        self._ask(found, files, config)
        self.settings["questions"] = {
            split: sum(question.id.startswith(f"{split}/") for question in self.questions) for split in STRATEGIES
        }

    def score(self, answers: Mapping[str, str], reviews: Reviews) -> Scores:  # noqa: ARG002
        asked = self.answered(answers)
        columns = np.zeros((len(asked), COUNTS * len(STRATEGIES)))
        for row, question in enumerate(asked):
            label, yes = self._labels[question.id], says_yes(answers[question.id])
            split = STRATEGIES.index(question.id.split("/", 1)[0])
            columns[row, COUNTS * split + (0 if yes else 1) + (0 if label else 2)] = 1
        names = [*FIGURES, *(f"{split}.{figure}" for split in STRATEGIES for figure in FIGURES)]
        return Scores.of(
            asked,
            columns,
            scales=dict.fromkeys(names, RATE),
            figures=_figures,
            counts={"unanswered": len(self.questions) - len(asked)},
        )


def _figures(sums: Floats) -> Floats:
    """Turn ``[samples, 4 * splits]`` counts into the means over the splits, then each split's FIGURES."""
    splits = [_of_split(sums[:, start : start + COUNTS]) for start in range(0, sums.shape[1], COUNTS)]
    # A mean over splits is not defined where a split has no such metric.
    return np.concatenate([np.mean(splits, axis=0), *splits], axis=1)


def _of_split(counts: Floats) -> Floats:
    hits, misses, false_alarms, rejections = counts.T
    total = counts.sum(axis=1)
    return np.stack(
        [
            ratios(hits + rejections, total),
            ratios(hits, hits + false_alarms),
            ratios(hits, hits + misses),
            ratios(2 * hits, 2 * hits + false_alarms + misses),
            ratios(hits + false_alarms, total),
        ],
        axis=1,
    )
