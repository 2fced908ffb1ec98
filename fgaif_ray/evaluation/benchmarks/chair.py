"""CHAIR (Rohrbach et al., arXiv 1809.02156): objects in captions of COCO images that are not in the image.

The truth of an image is the categories of its instances and the objects that its reference captions mention, both
after the official synonyms. The official script has some lists in its code (double words, qualifiers of animals and
vehicles). They are read from that script if it is beside the synonyms; without it, the two-word synonyms are the double
words. Words are brought to the singular by the synonym list itself, not by the ``pattern`` package.
"""

import random
from collections.abc import Collection, Mapping
from typing import ClassVar, Final, Self

import numpy as np

from fgaif_ray.config import ChairConfig
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation.benchmarks.base import RATE, Benchmark, BenchmarkQuestion, Reviews, Scores
from fgaif_ray.evaluation.benchmarks.coco_objects import CocoAnnotations, ObjectReader, script_doubles
from fgaif_ray.evaluation.benchmarks.official_files import OfficialFiles
from fgaif_ray.records import fingerprint
from fgaif_ray.statistics.intervals import Floats, ratios

SYNONYMS: Final = "synonyms.txt"
SCRIPT: Final = "chair.py"


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
    return ObjectReader(synonyms, script_doubles(files.text(name), name, files))


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
        annotations = CocoAnnotations(files)
        ids = {name: image for image, name in annotations.names.items()}
        known = sorted(set(images) & ids.keys())
        if not known:
            raise UserError(
                f"None of the {len(images)} images is annotated in {config.path}: give COCO images and the annotations "
                "of the same year."
            )
        drawn = known
        if draw:
            drawn = sorted(random.Random(f"chair/{seed}").sample(known, min(config.sample_images, len(known))))
        drawn = drawn[: config.limit]
        truth = annotations.objects({ids[name] for name in drawn}, self._reader, SYNONYMS)
        self._truth = {name: truth[ids[name]] for name in drawn}
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

    @classmethod
    def read(cls, config: ChairConfig, images: Collection[str], *, draw: bool, seed: int) -> Self:
        return cls(config, images, draw=draw, seed=seed)

    def score(self, answers: Mapping[str, str], reviews: Reviews) -> Scores:  # noqa: ARG002
        asked = self.answered(answers)
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
