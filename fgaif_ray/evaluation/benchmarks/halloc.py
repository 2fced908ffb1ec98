"""HalLoc (Park et al., CVPR 2025, arXiv 2506.10286): texts about images of Visual Genome with injected, marked errors.

A test of reward models: does one give a segment with an error a higher probability of being hallucinated than one
without? The paper marks tokens and scores detectors of tokens by precision, recall and F1. Reward models judge
segments, so here a segment is hallucinated if an error of the type touches it; the metrics are not those of the paper.

The repository dbsltm/cvpr25_halloc and the data set uunicee/HalLoc could not be read when this was written. Names of
files and keys (``image_id``, ``prompt``, ``hallucinated_text``, ``annotations``) are those of the data set's card. What
is in ``annotations`` is read as public code does that was made for the data set (Debolena7/my_halloc at commit 1c365c4,
and its data): by type, a list of objects whose values have a ``name`` and a ``char_index`` such as ``"51:56"`` or
``"51"``, which are characters of ``hallucinated_text``, the last one excluded.
"""

import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from fgaif_ray.config import HalLocConfig
from fgaif_ray.evaluation.benchmarks.base import RATE, MarkedResponse, RewardBenchmark, Verdicts
from fgaif_ray.evaluation.benchmarks.official_files import OfficialFiles
from fgaif_ray.prompts import IMAGE_MARKER
from fgaif_ray.records import HALLUCINATED
from fgaif_ray.segments import split_segments
from fgaif_ray.statistics.intervals import Estimate, Floats, estimate_weighted, ratios
from fgaif_ray.statistics.ranking import RANKING, Ranking

FACT_TYPE_OF: Final[Mapping[str, str]] = {
    "object": "existence",
    "attribute": "attribute",
    "relationship": "relation",
}
"""Type of error -> the fact type whose reward model it is about. Others (``scene``, ``other``) and ``all`` of them are
about the highest probability of any reward model."""
ALL: Final = "all"
THRESHOLDED: Final = ("share", "balanced_accuracy", "precision", "recall", "f1")
_PUNCTUATION: Final = str.maketrans("", "", string.punctuation + " ")


class HalLoc(RewardBenchmark):
    """A folder with ``halloc_vqa.json``, ``halloc_instruct.json`` or ``halloc_caption.json``."""

    name: ClassVar[str] = "halloc"
    title: ClassVar[str] = "HalLoc"

    def __init__(self, config: HalLocConfig) -> None:
        files = OfficialFiles(self.title, self.name, config.path)
        self._counts: Counter[str] = Counter()
        self.responses: list[MarkedResponse] = []
        images: dict[str, None] = {}
        keys: dict[str, type] = {"prompt": str, "hallucinated_text": str, "annotations": dict}
        for number, row in files.checked_rows(config.file, **keys):
            if config.split is not None and row.get("split") != config.split:
                continue
            image = str(row.get("image_id", ""))
            if not image:
                raise files.fault(config.file, f"entry {number} has no image_id")
            images[image] = None
            if config.limit is not None and len(images) > config.limit:
                break
            prompt = row["prompt"].replace(IMAGE_MARKER, "").strip()
            text, errors = row["hallucinated_text"], self._errors(row, files, config.file, number)
            self.responses.append(MarkedResponse(str(row.get("id", number - 1)), image, prompt, text, errors))
        if not self.responses:
            raise files.fault(
                config.file, f"no entry is of the split {config.split!r}" if config.split else "it is empty"
            )
        if len({response.id for response in self.responses}) < len(self.responses):
            raise files.fault(config.file, "an id occurs twice")
        self.settings = {"files": files.digests, "responses": len(self.responses)}

    def _errors(
        self, row: Mapping[str, Any], files: OfficialFiles, file: str, number: int
    ) -> dict[str, tuple[tuple[int, int], ...]]:
        text = row["hallucinated_text"]
        found: dict[str, tuple[tuple[int, int], ...]] = {}
        for kind, marks in row["annotations"].items():
            spans = []
            for mark in _marks(marks):
                try:
                    start, end = _characters(str(mark["char_index"]))
                except (KeyError, ValueError) as error:
                    raise files.fault(file, f"entry {number} has a mark without a char_index") from error
                if not 0 <= start < end <= len(text):
                    raise files.fault(file, f"entry {number} marks characters {start}:{end} of {len(text)}")
                named = str(mark.get("name", text[start:end]))
                self._counts["misplaced"] += _bare(named) != _bare(text[start:end])
                spans.append((start, end))
            if spans:
                found[kind] = tuple(spans)
        return found

    def measure(self, verdicts: Verdicts, seed: int = 0) -> tuple[dict[str, float], dict[str, Any]]:
        judged = [response for response in self.responses if response.id in verdicts]
        kinds = list(dict.fromkeys(kind for response in self.responses for kind in response.errors))
        kinds = [
            *(kind for kind in FACT_TYPE_OF if kind in kinds),
            *(kind for kind in kinds if kind not in FACT_TYPE_OF),
        ]
        spans = [said_spans(one.text) for one in judged]
        clusters = [one.image for one, of_one in zip(judged, spans, strict=True) for _ in of_one]
        truth = {
            kind: np.array(
                [
                    mark
                    for one, of_one in zip(judged, spans, strict=True)
                    for mark in marked_segments(of_one, one.errors.get(kind, ()))
                ],
                dtype=bool,
            )
            for kind in kinds
        }
        truth[ALL] = np.any([np.zeros(len(clusters), bool), *truth.values()], axis=0)
        scales: dict[str, float] = {}
        figures: dict[str, Any] = {}
        for kind, positive in truth.items():
            fact_type = FACT_TYPE_OF.get(kind)
            given = [verdicts[one.id] for one in judged]
            if fact_type is not None and given and fact_type not in given[0]:
                continue  # the run has no such reward model
            names = [f"{kind}.{name}" for name in (*THRESHOLDED, *RANKING)]
            scales |= dict.fromkeys(names, RATE)
            if not clusters:
                figures |= {name: Estimate(None, None).to_dict() for name in names}
                continue
            scores = np.concatenate([_score(of_types, fact_type) for of_types in given])
            said = np.concatenate([_said(of_types, fact_type) for of_types in given])
            estimates = estimate_weighted(clusters, _Figures(scores, said, positive), seed=seed)
            figures |= {name: estimate.to_dict() for name, estimate in zip(names, estimates, strict=True)}
        counts = {"unjudged": len(self.responses) - len(judged), **self._counts}
        return scales, {"answers": len(clusters), "figures": figures, "counts": counts}


class _Figures:
    """Metrics of verdicts by how often each segment counts."""

    def __init__(self, scores: Floats, said: NDArray[np.bool_], positive: NDArray[np.bool_]) -> None:
        self._ranking = Ranking(scores, positive)
        self._columns = np.stack([said & positive, positive, said, ~said & ~positive, ~positive], axis=1)

    def __call__(self, weights: Floats) -> Floats:
        hits, positives, said, rejections, negatives = (weights @ self._columns.astype(np.float64)).T
        recall, specificity = ratios(hits, positives), ratios(rejections, negatives)
        thresholded = [
            ratios(positives, positives + negatives),
            (recall + specificity) / 2,
            ratios(hits, said),
            recall,
            ratios(2 * hits, said + positives),
        ]
        return np.concatenate([np.stack(thresholded, axis=1), self._ranking.figures(weights)], axis=1)


def said_spans(text: str) -> list[tuple[int, int]]:
    """Find the characters of each segment of a text, without the white space behind it."""
    return [(span.start, span.start + len(text[span.start : span.end].rstrip())) for span in split_segments(text)]


def marked_segments(spans: Sequence[tuple[int, int]], marks: Sequence[tuple[int, int]]) -> list[bool]:
    """Tell which segments a mark touches.

    Args:
        spans: ``[segments]`` of ``said_spans``.
        marks: characters that are marked, from the first to the one behind the last.
    """
    return [any(first < end and last > start for first, last in marks) for start, end in spans]


def _characters(index: str) -> tuple[int, int]:
    """The characters of ``"51:56"`` or ``"51"``; raises ValueError of anything else."""
    first, _, last = index.partition(":")
    return int(first), int(last) if last else int(first) + 1


def _marks(marks: Any) -> Iterator[Mapping[str, Any]]:
    """The marks of a type: values of objects in a list; what is not a mark is one without characters."""
    for entry in marks if isinstance(marks, list) else [marks]:
        values = entry.values() if isinstance(entry, Mapping) and "char_index" not in entry else [entry]
        yield from (value if isinstance(value, Mapping) else {} for value in values)


def _bare(text: str) -> str:
    return text.lower().translate(_PUNCTUATION)


def _score(verdicts: Mapping[str, NDArray[np.float32]], fact_type: str | None) -> Floats:
    """Probability that a segment is hallucinated, ``[segments]``."""
    chosen = verdicts.values() if fact_type is None else [verdicts[fact_type]]
    found: Floats = np.max([of_type[:, HALLUCINATED] for of_type in chosen], axis=0).astype(np.float64)
    return found


def _said(verdicts: Mapping[str, NDArray[np.float32]], fact_type: str | None) -> NDArray[np.bool_]:
    """Whether hallucinated is the likeliest class, ``[segments]``."""
    chosen = verdicts.values() if fact_type is None else [verdicts[fact_type]]
    found: NDArray[np.bool_] = np.any([of_type.argmax(axis=1) == HALLUCINATED for of_type in chosen], axis=0)
    return found
