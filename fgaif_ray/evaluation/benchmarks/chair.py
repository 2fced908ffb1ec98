"""CHAIR (Rohrbach et al., arXiv 1809.02156): objects in captions of COCO images that are not in the image.

The truth of an image is the categories of its instances and the objects that its reference captions mention, both
after the official synonyms. The official script has some lists in its code (double words, qualifiers of animals and
vehicles). They are read from that script if it is beside the synonyms; without it, the two-word synonyms are the double
words. Words are brought to the singular by the synonym list itself, not by the ``pattern`` package.
"""

import random
import re
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Final

import numpy as np

from fgaif_ray.config import ChairConfig
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation.benchmarks.base import (
    RATE,
    Benchmark,
    BenchmarkQuestion,
    OfficialFiles,
    Reviews,
    Scores,
    need,
)
from fgaif_ray.evaluation.benchmarks.words import Lexicon, tokens
from fgaif_ray.records import fingerprint
from fgaif_ray.statistics.intervals import Floats, ratios

SYNONYMS: Final = "synonyms.txt"
SCRIPT: Final = "chair.py"
YEARS: Final = ("val2014", "train2014", "val2017", "train2017")
_LIST: Final = r"\b{name}\s*=\s*\[([^\]]*)\]"
_WORDS: Final = re.compile(r"\s*(?:(?:'[^'\\]*'|\"[^\"\\]*\")\s*(?:,\s*|$))*")
_WORD: Final = re.compile(r"'([^'\\]*)'|\"([^\"\\]*)\"")
"""Pattern of a list of quoted words, read as text: the script is not evaluated."""
_QUALIFIED: Final = re.compile(r"double_word_dict\[\s*['\"](\w+) %s['\"]\s*%\s*(\w+)\s*\]")
_MAPPED: Final = re.compile(r"double_word_dict\[\s*['\"]([\w ]+)['\"]\s*\]\s*=\s*['\"]([\w ]+)['\"]")


class ObjectReader:
    """Finds COCO's objects in a text.

    Example: ``ObjectReader([["dog", "puppy"]], {"hot dog": "hot dog"}).objects("Puppies eat a hot dog.") == ["dog"]``
    """

    def __init__(self, synonyms: list[list[str]], doubles: Mapping[str, str]) -> None:
        """Args:
        synonyms: lines of synonyms, the object's name first.
        doubles: two words that are read as one -> what they are read as.
        """
        self._names = {word: line[0] for line in synonyms for word in line}
        self._doubles = dict(doubles)
        self._lexicon = Lexicon({*self._names, *(word for double in doubles for word in double.split())})

    def name_of(self, word: str) -> str | None:
        """Return the object that a synonym stands for."""
        return self._names.get(word)

    def objects(self, text: str) -> list[str]:
        """List the objects that a text mentions, one per mention, in order."""
        words = [self._lexicon.base(token) for token in tokens(text.lower())]
        read: list[str] = []
        place = 0
        while place < len(words):
            double = self._doubles.get(" ".join(words[place : place + 2]))
            read.append(words[place] if double is None else double)
            place += 1 if double is None else 2
        if "toilet" in read and "seat" in read:  # a part of the toilet, not a chair
            read = [word for word in read if word != "seat"]
        return [self._names[word] for word in read if word in self._names]


def read_objects(files: OfficialFiles) -> ObjectReader:
    """Read the official synonyms and, if the script is there, its double words.

    Raises:
        UserError: no synonyms, or a script without the official lists.
    """
    # Split as the official script does: two words with one space too many before them are never found there either.
    synonyms = [line.strip().split(", ") for line in files.text(SYNONYMS).splitlines() if line.strip()]
    name = files.find(SCRIPT, f"utils/{SCRIPT}")
    if name is None:
        return ObjectReader(synonyms, {word: word for line in synonyms for word in line if len(word.split()) == 2})
    return ObjectReader(synonyms, _script_doubles(files.text(name), name, files))


def _script_doubles(source: str, name: str, files: OfficialFiles) -> dict[str, str]:
    """Read the double words of the official script by searching its text; the script is not run."""

    def words(of: str) -> list[str]:
        found = re.search(_LIST.format(name=of), source)
        if found is None or _WORDS.fullmatch(found[1]) is None:
            raise files.fault(name, f"it has no list {of}")
        return [single or double for single, double in _WORD.findall(found[1])]

    doubles = {word: word for word in words("coco_double_words")}
    for qualifier, variable in _QUALIFIED.findall(source):
        doubles |= {f"{qualifier} {word}": word for word in words(f"{variable}s")}
    return doubles | dict(_MAPPED.findall(source))


class Chair(Benchmark):
    """A folder with COCO's ``instances_*.json`` and ``captions_*.json``, CHAIR's ``synonyms.txt`` and ``chair.py``."""

    name: ClassVar[str] = "chair"
    title: ClassVar[str] = "CHAIR"

    def __init__(self, config: ChairConfig, images: Collection[str], *, draw: bool, seed: int = 0) -> None:
        """Read the files.

        Args:
            config: the settings.
            images: file names to ask about; those that the annotations do not know are left out.
            draw: whether to draw ``sample_images`` of them, or take all.
            seed: of the draw.

        Raises:
            UserError: a file is missing or has another form, or no image is annotated.
        """
        files = OfficialFiles(self.title, self.name, config.path)
        self._reader = read_objects(files)
        kinds = {
            kind: [files.object(name) for name in _annotation_files(files, kind)] for kind in ("instances", "captions")
        }
        ids = {
            entry["id"]: entry["file_name"]
            for annotations in (file for of_kind in kinds.values() for file in of_kind)
            for entry in _list(files, annotations, "images", id=int, file_name=str)
        }
        known = sorted(set(images) & set(ids.values()))
        if not known:
            raise UserError(
                f"None of the {len(images)} images is annotated in {config.path}: give COCO images and the annotations "
                "of the same year."
            )
        drawn = known
        if draw:
            drawn = sorted(random.Random(f"chair/{seed}").sample(known, min(config.sample_images, len(known))))
        drawn = drawn[: config.limit]
        self._truth = self._read_truth(files, kinds, ids, set(drawn))
        self.questions = [BenchmarkQuestion(name, name, config.prompt, config.max_tokens) for name in drawn]
        self.settings = {
            "files": files.digests,
            "prompt": config.prompt,
            "images": len(drawn),
            "drawn_from": len(known),
            "seed": seed if draw else None,
            "image_list": fingerprint(drawn),
            "double_words": "official script" if files.find(SCRIPT, f"utils/{SCRIPT}") else "two-word synonyms",
        }

    def _read_truth(
        self, files: OfficialFiles, kinds: Mapping[str, list[dict[str, Any]]], ids: Mapping[int, str], wanted: set[str]
    ) -> dict[str, set[str]]:
        truth: dict[str, set[str]] = {name: set() for name in wanted}
        for file in kinds["instances"]:
            categories = {entry["id"]: entry["name"] for entry in _list(files, file, "categories", id=int, name=str)}
            for entry in _list(files, file, "annotations", image_id=int, category_id=int):
                image = ids.get(entry["image_id"])
                if image in wanted:
                    category = categories.get(entry["category_id"], "")
                    name = self._reader.name_of(category)
                    if name is None:
                        raise files.fault(SYNONYMS, f"it does not know the category {category!r}")
                    truth[image].add(name)
        for file in kinds["captions"]:
            for entry in _list(files, file, "annotations", image_id=int, caption=str):
                image = ids.get(entry["image_id"])
                if image in wanted:
                    truth[image].update(self._reader.objects(entry["caption"]))
        return truth

    def score(self, answers: Mapping[str, str], reviews: Reviews) -> Scores:  # noqa: ARG002
        asked = [question for question in self.questions if question.id in answers]
        columns = np.zeros((len(asked), 7))
        for row, question in enumerate(asked):
            answer, truth = answers[question.id], self._truth[question.image]
            mentioned = self._reader.objects(answer)
            wrong = sum(name not in truth for name in mentioned)
            found = len(truth.intersection(mentioned))
            columns[row] = [wrong, len(mentioned), wrong > 0, found, len(truth), len(answer.split()), 1]
        return Scores.of(
            asked,
            columns,
            scales={"chair_i": RATE, "chair_s": RATE, "recall": RATE, "words": 1.0, "mentions": 1.0},
            figures=_figures,
            counts={"unanswered": len(self.questions) - len(asked)},
        )


def _figures(sums: Floats) -> Floats:
    wrong, mentions, captions_wrong, found, objects, words, captions = sums.T
    parts = np.stack([wrong, captions_wrong, found, words, mentions], axis=1)
    return ratios(parts, np.stack([mentions, captions, objects, captions, captions], axis=1))


def _annotation_files(files: OfficialFiles, kind: str) -> list[str]:
    names = [f"{kind}_{year}.json" for year in YEARS]
    found = [name for name in names if files.find(name)]
    if not found:
        files.text(*names)  # says what is missing
    return found


def _list(files: OfficialFiles, value: Mapping[str, Any], key: str, **kinds: type) -> list[dict[str, Any]]:
    rows = value.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"An annotation file in {files.folder} has no list {key!r}: give COCO's own files.")
    for number, row in enumerate(rows, start=1):
        need(row, files, key, number, **kinds)
    return rows
