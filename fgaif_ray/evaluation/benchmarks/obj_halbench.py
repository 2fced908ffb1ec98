"""Object HalBench (300 COCO images): how many answers, and how many mentions, have an object that is not there.

Of RLHF-V (Yu et al., arXiv 2312.00849), with the truth of CHAIR (Rohrbach et al., arXiv 1809.02156). Files and rules
are those in ``eval`` of RLHF-V/RLHF-V at commit 8daac8a: ``eval_gpt_obj_halbench.py`` and
``summarize_gpt_obj_halbench_review.py``. A language model lists the objects of an answer, once each. They are brought
to COCO's names and compared with the truth. The model's prompt is read from that script, which is not run.

One step differs. The script lemmatises and tags the listed objects with a transformer of spaCy. Here words are brought
to the singular by the synonym list; what is listed counts if two words of it, or all of it, are a synonym, and common
adjectives and numbers before it are left out.
"""

import base64
import binascii
import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import ClassVar, Final

import numpy as np

from fgaif_ray.config import ObjHalBenchConfig
from fgaif_ray.evaluation.benchmarks.base import (
    RATE,
    Benchmark,
    BenchmarkQuestion,
    JudgeQuestion,
    Reviews,
    Scores,
    review_text,
)
from fgaif_ray.evaluation.benchmarks.coco_objects import CocoAnnotations, ObjectReader, script_doubles
from fgaif_ray.evaluation.benchmarks.official_files import OfficialFiles, python_text
from fgaif_ray.statistics.intervals import Floats, ratios

QUESTIONS: Final = "obj_halbench_300_with_image.jsonl"
SYNONYMS: Final = "synonyms_refine.txt"
SCRIPT: Final = "eval_gpt_obj_halbench.py"
TEMPLATE: Final = "prompt_template"
SHORT_ANSWER: Final = 3
"""Words of an answer in which no objects are looked for."""
_ADJECTIVES: Final = (
    "a an the some several many few other another one two three four five six seven eight nine ten red orange yellow "
    "green blue purple pink brown black white grey gray golden dark light bright big large small little tiny huge tall "
    "short long young old new wooden metallic round open empty"
)
QUALIFIERS: Final = frozenset(_ADJECTIVES.split())
"""What may stand before the name of an object without being a noun."""
EMPTY_LIST: Final = "()"
"""What the prompt calls an empty list."""
_LISTED: Final = re.compile(r"\[[^\[\]]*\]")


def read_list(review: str) -> list[str] | None:
    """Read the list of objects in a review: the JSON that it is, or that its last line is; None without one."""
    if review.strip() == EMPTY_LIST:
        return []
    for text in (review, review.strip().rsplit("\n", 1)[-1], *_LISTED.findall(review)[-1:]):
        try:
            found = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(found, list):
            return [item for item in found if isinstance(item, str)]
    return None


def named_words(listed: list[str], reader: ObjectReader) -> list[str]:
    """Bring listed objects to words of the synonym list, each once, in order."""
    found: dict[str, None] = {}
    for text in listed:
        words = reader.words(text)
        doubles = [word for word, double in words if double]
        if not doubles:
            nouns = [word for word, _ in words]
            while len(nouns) > 1 and nouns[0] in QUALIFIERS:
                del nouns[0]
            doubles = [" ".join(nouns)]
        found |= dict.fromkeys(doubles)
    return list(found)


class ObjHalBench(Benchmark):
    """A folder with the official questions, synonyms and script, and COCO's annotations of 2014."""

    name: ClassVar[str] = "obj_halbench"
    title: ClassVar[str] = "Object HalBench"

    def __init__(self, config: ObjHalBenchConfig) -> None:
        files = OfficialFiles(self.title, self.name, config.path)
        self.judged = config.extraction == "judge"
        script = files.text(SCRIPT, f"eval/{SCRIPT}")
        template = python_text(script, TEMPLATE)
        if template is None or "{question}" not in template or "{answer}" not in template:
            raise files.fault(SCRIPT, f"it has no text {TEMPLATE!r} with places for question and answer")
        self._template = template
        lines = files.text(SYNONYMS, f"data/{SYNONYMS}", f"eval/data/{SYNONYMS}").splitlines()
        synonyms = [[word.strip() for word in line.strip().split(", ")] for line in lines if line.strip()]
        doubles = {word: word for line in synonyms for word in line if len(word.split(" ")) >= 2}
        self._reader = ObjectReader(synonyms, doubles | script_doubles(script, SCRIPT, files))
        questions = []
        self._embedded: dict[str, str] = {}
        ids: dict[str, int] = {}
        names = (QUESTIONS, f"data/{QUESTIONS}", f"eval/data/{QUESTIONS}")
        for number, row in files.checked_rows(*names, question=str):
            try:
                image_id = int(row["image_id"])
            except (KeyError, TypeError, ValueError) as error:
                raise files.fault(QUESTIONS, f"entry {number} has no image_id of COCO") from error
            image = f"{image_id:012d}.jpg"
            if isinstance(row.get("image"), str):
                self._embedded[image] = row["image"]
            ids[image] = image_id
            questions.append(BenchmarkQuestion(str(number - 1), image, row["question"], config.max_tokens))
        self._files = files
        truth = CocoAnnotations(files).objects(ids.values(), self._reader, SYNONYMS)
        self._truth = {image: truth[image_id] for image, image_id in ids.items()}
        self._ask(questions, files, config, extraction=config.extraction)

    def embedded_images(self) -> dict[str, Callable[[], bytes]]:
        return {name: functools.partial(self._decoded, name) for name in self._embedded}

    def _decoded(self, name: str) -> bytes:
        try:
            return base64.b64decode(self._embedded[name], validate=True)
        except binascii.Error as error:
            raise self._files.fault(QUESTIONS, f"the image {name} is not base64") from error

    def judge_questions(self, answers: Mapping[str, str]) -> list[JudgeQuestion]:
        asked = []
        for question in self.questions:
            answer = _said(answers.get(question.id, ""))
            if self.judged and len(answer.split()) > SHORT_ANSWER:
                # Not str.format: the template and the texts hold brackets of their own.
                before, after = self._template.split("{answer}", 1)
                text = before.replace("{question}", question.prompt) + answer + after
                asked.append(JudgeQuestion(question.id, False, [{"role": "system", "content": text}]))
        return asked

    def score(self, answers: Mapping[str, str], reviews: Reviews) -> Scores:
        asked = self.answered(answers)
        kept = []
        rows = []
        for question in asked:
            answer = _said(answers[question.id])
            mentioned = self._mentioned(answer, review_text(reviews, question.id))
            if mentioned is None:
                continue
            truth = self._truth[question.image]
            wrong = sum(name not in truth for name in mentioned)
            found = len(truth.intersection(mentioned))
            kept.append(question)
            rows.append(
                [wrong > 0, len(mentioned) > 0, wrong, len(mentioned), found, len(truth), len(answer.split(" ")), 1]
            )
        return Scores.of(
            kept,
            np.array(rows, dtype=np.float64).reshape(len(rows), 8),
            scales={"response": RATE, "mention": RATE, "chair_s": RATE, "recall": RATE, "words": 1.0, "mentions": 1.0},
            figures=_figures,
            counts={"unanswered": len(self.questions) - len(asked), "unrated": len(asked) - len(kept)},
        )

    def _mentioned(self, answer: str, review: str) -> list[str] | None:
        """The COCO object of each word that an answer mentions; None where a judge's list cannot be read."""
        if not self.judged:
            return self._reader.objects(answer)
        listed = [] if len(answer.split()) <= SHORT_ANSWER else read_list(review)
        if listed is None:
            return None
        words = self._reader.known(named_words(listed, self._reader))
        return [name for word in words if (name := self._reader.name_of(word)) is not None]


def _said(answer: str) -> str:
    """An answer without what the script takes off it."""
    return answer.replace("Assistant:", "").strip()


def _figures(sums: Floats) -> Floats:
    wrong_answers, with_objects, wrong, mentions, found, objects, words, answers = sums.T
    parts = np.stack([wrong_answers, wrong, wrong_answers, found, words, mentions], axis=1)
    return ratios(parts, np.stack([with_objects, mentions, answers, objects, answers, answers], axis=1))
