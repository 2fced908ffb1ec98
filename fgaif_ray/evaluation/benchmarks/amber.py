"""AMBER (Wang et al., arXiv 2311.07397): descriptions, and yes/no questions in which "No" is the positive class.

Metrics follow the official script, with three differences: nouns are the words of the official list in singular form,
with no part-of-speech tagger; similar words are those of ``similar.json`` in place of a spaCy model's vectors (only
equal words without that file); and nothing is rounded or kept above zero by small constants.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np

from fgaif_ray.config import AmberConfig
from fgaif_ray.evaluation.benchmarks.base import RATE, Benchmark, BenchmarkQuestion, Reviews, Scores
from fgaif_ray.evaluation.benchmarks.official_files import OfficialFiles
from fgaif_ray.evaluation.benchmarks.words import Lexicon, says, tokens
from fgaif_ray.statistics.intervals import Floats, ratios

GENERATIVE: Final = "generative"
SIMILAR: Final = "similar.json"
KINDS: Final = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    "discriminative-relation": "relation",
    "relation": "relation",
}
"""Official type -> kind; relation questions with the answer no have a type name of their own."""
DIMENSIONS: Final = {
    "all": ("existence", "state", "number", "action", "relation"),
    "existence": ("existence",),
    "attribute": ("state", "number", "action"),
    "relation": ("relation",),
    "state": ("state",),
    "number": ("number",),
    "action": ("action",),
}
MEASURES: Final = ("accuracy", "precision", "recall", "f1")
_KIND_NAMES: Final = DIMENSIONS["all"]
_DESCRIBED: Final = 8
"""Columns of descriptions: wrong mentions, mentions; objects covered, objects; pitfalls said, pitfalls; descriptions
with a wrong mention, descriptions."""
_ASKED: Final = 5
"""Columns of a kind of question: questions, right, said no, rightly said no, to be answered no."""


class WordJudge:
    """The official word lists, applied to the nouns of a description."""

    def __init__(
        self,
        associations: Mapping[str, list[str]],
        safe: frozenset[str],
        similar: Mapping[str, frozenset[str]] | None = None,
    ) -> None:
        """Args:
        associations: annotated word -> words that stand for it.
        safe: words that are never wrong.
        similar: word -> words of the list with about the same meaning; None means equal words only.
        """
        self._associations = associations
        self._safe = safe
        self._similar = similar or {}
        self._words = frozenset([*associations, *(word for words in associations.values() for word in words)])
        self._lexicon = Lexicon(self._words)

    def nouns(self, text: str) -> list[str]:
        """List the mentioned words of the official list; as in the official script, a capital letter hides a word."""
        bases = (self._lexicon.base(token) for token in tokens(text))
        return [word for word in bases if word in self._words]

    def count(self, text: str, truth: list[str], pitfalls: list[str]) -> tuple[int, int, int, int]:
        """Count wrong mentions, mentions, annotated objects covered, and pitfalls (typical hallucinations) said."""
        nouns = self.nouns(text)
        covered: set[str] = set()
        said: set[str] = set()
        wrong = 0
        for noun in nouns:
            if noun in self._safe:
                continue
            if (object_ := self._match(noun, truth, similar=False)) is not None:
                covered.add(object_)
                continue
            for similar in (False, True):
                if (pitfall := self._match(noun, pitfalls, similar=similar)) is not None:
                    said.add(pitfall)
            if (object_ := self._match(noun, truth, similar=True)) is not None:
                covered.add(object_)
            else:
                wrong += 1
        return wrong, len(nouns), len(covered), len(said)

    def _match(self, noun: str, annotated: list[str], *, similar: bool) -> str | None:
        """Return the first annotated word that a noun stands for; associated words come before the annotated ones."""
        pairs = [(word, name) for name in annotated for word in self._associations[name]]
        pairs += [(name, name) for name in annotated]
        alike = self._similar.get(noun, frozenset()) if similar else frozenset()
        return next((name for word, name in pairs if word == noun or word in alike), None)


class Amber(Benchmark):
    """A folder with AMBER's ``annotations.json``, ``relation.json``, ``safe_words.txt`` and a query file."""

    name: ClassVar[str] = "amber"
    title: ClassVar[str] = "AMBER"

    def __init__(self, config: AmberConfig) -> None:
        files = OfficialFiles(self.title, self.name, config.path)
        self._annotations = _annotations(files)
        self._words = WordJudge(*_word_lists(files, self._annotations))
        name = files.find("query_all.json", "query/query_all.json", "query_generative.json") or "query_all.json"
        questions = []
        for _, row in files.checked_rows(name, id=int, image=str, query=str):
            annotation = self._annotations.get(row["id"])
            if annotation is None:
                raise files.fault(name, f"annotations.json has no id {row['id']}")
            described = annotation["type"] == GENERATIVE
            limit = config.max_tokens if described else config.short_max_tokens
            questions.append(BenchmarkQuestion(str(row["id"]), row["image"], row["query"], limit))
        similar = SIMILAR if SIMILAR in files.digests else "equal words only"
        self._ask(questions, files, config, similar_words=similar)

    def score(self, answers: Mapping[str, str], reviews: Reviews) -> Scores:  # noqa: ARG002
        asked = self.answered(answers)
        columns = np.zeros((len(asked), _DESCRIBED + _ASKED * len(_KIND_NAMES)))
        unreadable = inexact = 0
        for row, question in enumerate(asked):
            annotation, answer = self._annotations[int(question.id)], answers[question.id]
            if annotation["type"] == GENERATIVE:
                truth, pitfalls = annotation["truth"], annotation["hallu"]
                wrong, nouns, covered, said = self._words.count(answer, truth, pitfalls)
                columns[row, :_DESCRIBED] = [
                    wrong, nouns, covered, len(truth), said, len(pitfalls), wrong > 0, 1
                ]  # fmt: skip
                continue
            said_word = says(answer)
            unreadable += said_word is None
            inexact += answer.strip() not in ("Yes", "No")
            is_no, said_no = annotation["truth"] == "no", said_word == "No"
            right = said_word == ("No" if is_no else "Yes")
            start = _DESCRIBED + _ASKED * _KIND_NAMES.index(KINDS[annotation["type"]])
            columns[row, start : start + _ASKED] = [1, right, said_no, said_no and is_no, is_no]
        scales = dict.fromkeys(("chair", "cover", "hal", "cog"), RATE)
        scales |= {f"{dimension}.{measure}": RATE for dimension in DIMENSIONS for measure in MEASURES}
        return Scores.of(
            asked,
            columns,
            scales={"amber_score": 1.0} | scales,
            figures=_figures,
            counts={
                "unanswered": len(self.questions) - len(asked),
                "neither_yes_nor_no": unreadable,
                "not_exactly_yes_or_no": inexact,
            },
        )


def _figures(sums: Floats) -> Floats:
    wrong, mentions, covered, to_cover, said, pitfalls, descriptions_wrong, descriptions = sums[:, :_DESCRIBED].T
    described = ratios(
        np.stack([wrong, covered, descriptions_wrong, said], axis=1),
        np.stack([mentions, to_cover, descriptions, pitfalls], axis=1),
    )
    measures = []
    for kinds in DIMENSIONS.values():
        starts = [_DESCRIBED + _ASKED * _KIND_NAMES.index(kind) for kind in kinds]
        questions, right, said_no, rightly_no, no = sum(sums[:, start : start + _ASKED] for start in starts).T  # type: ignore[union-attr]
        measures.append(
            np.stack(
                [
                    ratios(right, questions),
                    ratios(rightly_no, said_no),
                    ratios(rightly_no, no),
                    ratios(2 * rightly_no, said_no + no),
                ],
                axis=1,
            )
        )
    score = (1 - described[:, :1] + measures[0][:, 3:]) / 2 * RATE
    return np.concatenate([score, described, *measures], axis=1)


def _annotations(files: OfficialFiles) -> dict[int, dict[str, Any]]:
    name = "annotations.json"
    annotations: dict[int, dict[str, Any]] = {}
    for number, row in files.checked_rows(name, id=int, type=str):
        if row["type"] == GENERATIVE:
            files.check(row, name, number, truth=list, hallu=list)
        elif row["type"] not in KINDS or row.get("truth") not in ("yes", "no"):
            raise files.fault(name, f"entry {number} has the type {row['type']!r} and the truth {row.get('truth')!r}")
        annotations[row["id"]] = row
    return annotations


def _word_lists(
    files: OfficialFiles, annotations: Mapping[int, Mapping[str, Any]]
) -> tuple[dict[str, list[str]], frozenset[str], dict[str, frozenset[str]] | None]:
    associations: dict[str, list[str]] = files.object("relation.json")
    for row in annotations.values():
        words = [*row["truth"], *row["hallu"]] if row["type"] == GENERATIVE else []
        for word in words:
            if not isinstance(associations.get(word), list):
                raise files.fault("relation.json", f"it has no list for the annotated word {word!r}")
    safe = frozenset(line.strip() for line in files.text("safe_words.txt").splitlines() if line.strip())
    if files.find(SIMILAR) is None:
        return associations, safe, None
    similar = files.object(SIMILAR)
    if not all(isinstance(words, list) for words in similar.values()):
        raise files.fault(SIMILAR, "every word needs a list of words")
    return associations, safe, {word: frozenset(words) for word, words in similar.items()}
