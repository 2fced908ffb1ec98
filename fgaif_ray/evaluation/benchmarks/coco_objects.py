"""COCO's objects: those that a text mentions, and those that an image has by its annotations.

The truth of an image is the categories of its instances and the objects that its reference captions mention, both after
the synonyms of the benchmark (CHAIR, Rohrbach et al., arXiv 1809.02156, and Object HalBench take the same truth).
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from fgaif_ray.errors import UserError
from fgaif_ray.evaluation.benchmarks.official_files import OfficialFiles
from fgaif_ray.evaluation.benchmarks.words import Lexicon, tokens

YEARS: Final = ("val2014", "train2014", "val2017", "train2017")
_LIST: Final = r"\b{name}\s*\+?=\s*\[([^\]]*)\]"
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

    def words(self, text: str) -> list[tuple[str, bool]]:
        """List the words of a text in the singular, two words that are read as one together.

        Returns:
            Each with whether it stands for two.
        """
        words = [self._lexicon.base(token) for token in tokens(text.lower())]
        read: list[tuple[str, bool]] = []
        place = 0
        while place < len(words):
            double = self._doubles.get(" ".join(words[place : place + 2]))
            read.append((words[place], False) if double is None else (double, True))
            place += 1 if double is None else 2
        return read

    def known(self, words: Sequence[str]) -> list[str]:
        """Keep the synonyms among words; a seat beside a toilet is a part of it, not a chair."""
        seats = "toilet" in words and "seat" in words
        return [word for word in words if word in self._names and not (seats and word == "seat")]

    def objects(self, text: str) -> list[str]:
        """List the objects that a text mentions, one per mention, in order."""
        return [self._names[word] for word in self.known([word for word, _ in self.words(text)])]


class CocoAnnotations:
    """The ``instances_*.json`` and ``captions_*.json`` of a folder, read once."""

    def __init__(self, files: OfficialFiles) -> None:
        self._files = files
        self._kinds = {
            kind: [files.object(name) for name in _annotation_files(files, kind)] for kind in ("instances", "captions")
        }
        self.names: dict[int, str] = {
            entry["id"]: entry["file_name"]
            for annotations in (file for of_kind in self._kinds.values() for file in of_kind)
            for entry in _list(files, annotations, "images", id=int, file_name=str)
        }
        """File name by id of the image."""

    def objects(self, wanted: Collection[int], reader: ObjectReader, synonyms: str) -> dict[int, set[str]]:
        """Find the objects of images.

        Args:
            wanted: ids of the images.
            reader: of the benchmark's synonyms.
            synonyms: their file, for messages.

        Raises:
            UserError: an annotation file has another form, or a category is not among the synonyms.
        """
        truth: dict[int, set[str]] = {image: set() for image in wanted}
        for file in self._kinds["instances"]:
            entries = _list(self._files, file, "categories", id=int, name=str)
            categories = {entry["id"]: entry["name"] for entry in entries}
            for entry in _list(self._files, file, "annotations", image_id=int, category_id=int):
                if entry["image_id"] in truth:
                    category = categories.get(entry["category_id"], "")
                    name = reader.name_of(category)
                    if name is None:
                        raise self._files.fault(synonyms, f"it does not know the category {category!r}")
                    truth[entry["image_id"]].add(name)
        for file in self._kinds["captions"]:
            for entry in _list(self._files, file, "annotations", image_id=int, caption=str):
                if entry["image_id"] in truth:
                    truth[entry["image_id"]].update(reader.objects(entry["caption"]))
        return truth


def script_list(source: str, name: str, place: str, files: OfficialFiles) -> list[str]:
    """Read a list of words from an official script by searching its text; the script is not run.

    Raises:
        UserError: it has no such list.
    """
    for found in re.finditer(_LIST.format(name=name), source):
        if _WORDS.fullmatch(found[1]) is not None:
            return [single or double for single, double in _WORD.findall(found[1])]
    raise files.fault(place, f"it has no list {name}")


def script_doubles(source: str, place: str, files: OfficialFiles) -> dict[str, str]:
    """Read the double words of an official script: its list, words with a qualifier, and words read as others.

    Raises:
        UserError: it lacks one of the lists.
    """
    doubles = {word: word for word in script_list(source, "coco_double_words", place, files)}
    for qualifier, variable in _QUALIFIED.findall(source):
        doubles |= {f"{qualifier} {word}": word for word in script_list(source, f"{variable}s", place, files)}
    return doubles | dict(_MAPPED.findall(source))


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
        files.check(row, key, number, **kinds)
    return rows
