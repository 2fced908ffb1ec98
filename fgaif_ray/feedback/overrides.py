"""Labels that replace the AI's: human ones (the third experiment of FGAIF) and deterministic noise.

Both act on the segments of one labelled response and leave the facts and the AI's own labels in place. Human
labels come first; noise acts on the result.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Final

from fgaif_ray.audit.human import majority_labels, read_answers
from fgaif_ray.config import HumanLabelsConfig, LabelConfig, NoiseConfig
from fgaif_ray.errors import UserError
from fgaif_ray.records import AI, CONSISTENT, FACT_TYPES, HALLUCINATED, HUMAN, NOISE, Segment, fingerprint
from fgaif_ray.segments import ENGLISH, split_segments

_DRAW_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Overrides:
    """The replacements of labels in a run; without human labels and with rates of zero there are none.

    Example: ``Overrides.load(config.label, types).apply(sample_id, segments)``
    """

    human: Mapping[tuple[str, int], tuple[str, Mapping[str, int]]]
    """Sample id and number of the segment -> its text and its human labels, of the configured types only."""
    noise: NoiseConfig

    @classmethod
    def load(cls, config: LabelConfig, types: Sequence[str]) -> "Overrides":
        """Read the human labels of the run's types that the configuration names.

        Raises:
            UserError: their file cannot be used.
        """
        return cls({} if config.human is None else _read_human(config.human, types), config.noise)

    def key(self) -> tuple[str, ...]:
        """Return the part of a stage's fingerprint: equal for equal effects, empty where nothing is replaced."""
        parts = []
        if self.human:
            labels = sorted((*place, text, sorted(found.items())) for place, (text, found) in self.human.items())
            parts.append(fingerprint(HUMAN, labels))
        rates = {name: _rates(self.noise, name) for name in (*FACT_TYPES, *self.noise.by_type)}
        if any(rate > 0 for pair in rates.values() for rate in pair.values()):
            parts.append(fingerprint(NOISE, self.noise.seed, rates))
        return tuple(parts)

    def check(self, responses: Iterable[tuple[str, str]], language: str = ENGLISH) -> None:
        """Check that the human labels belong to a run, before anything is paid for.

        Args:
            responses: sample id and text of each.
            language: of the responses, see ``split_segments``.

        Raises:
            UserError: they are about none of these responses, or about other segments than these have.
        """
        if not self.human:
            return
        labelled = {sample_id for sample_id, _ in self.human}
        known = False
        for sample_id, text in responses:
            if sample_id in labelled:
                known = True
                for index, span in enumerate(split_segments(text, language)):
                    self._find(sample_id, index, text[span.start : span.end])
        if not known:
            raise UserError(
                "The human labels are about none of this run's responses: give label.human.path answers to an audit of "
                "this run."
            )

    def apply(
        self, sample_id: str, segments: Sequence[Segment], masked: Sequence[Set[str]] | None = None
    ) -> tuple[Segment, ...]:
        """Replace labels and say where each comes from.

        Args:
            sample_id: of the response.
            segments: its segments; what they have for ``labels`` and ``label_sources`` does not count.
            masked: ``[segments]`` fact types whose label is not to be used; None masks nothing.

        Returns:
            The segments with the ``labels`` to train on and their ``label_sources``; label and source of a masked type
            are None unless a person gave a label.

        Raises:
            UserError: a human label was given for another text than the segment it belongs to.
        """
        return tuple(
            self._apply(sample_id, index, segment, frozenset() if masked is None else masked[index])
            for index, segment in enumerate(segments)
        )

    def _apply(self, sample_id: str, index: int, segment: Segment, masked: Set[str]) -> Segment:
        labels = {name: None if name in masked else label for name, label in segment.ai_labels.items()}
        sources = {name: None if name in masked else AI for name in segment.ai_labels}
        found = self._find(sample_id, index, segment.text)
        labels |= found
        sources |= dict.fromkeys(found, HUMAN)
        for name, label in labels.items():
            if label is not None and is_flipped(self.noise, sample_id, index, name, label):
                labels[name] = HALLUCINATED if label == CONSISTENT else CONSISTENT
                sources[name] = NOISE
        return replace(segment, labels=labels, label_sources=sources)

    def _find(self, sample_id: str, index: int, text: str) -> Mapping[str, int]:
        """Return the human labels of a segment."""
        given, labels = self.human.get((sample_id, index), (text, {}))
        if given != text:
            raise UserError(
                f"The human labels of segment {index} of {sample_id} are about another text than this run's: give "
                "label.human.path answers to an audit of this run."
            )
        return labels


def is_flipped(noise: NoiseConfig, sample_id: str, segment: int, fact_type: str, label: int) -> bool:
    """Tell whether noise flips a label: the same answer in any order, on any machine.

    Each label has its own draw, so a higher rate flips what a lower one flips, and more. Absent is never flipped.
    """
    rates = _rates(noise, fact_type)
    if not rates.get(label):
        return False
    place = f"{noise.seed}\n{sample_id}\n{segment}\n{fact_type}".encode()
    draw = int.from_bytes(hashlib.sha256(place).digest()[:_DRAW_BYTES]) / 2 ** (8 * _DRAW_BYTES)  # [0, 1]
    return draw < rates[label] or rates[label] == 1


def _rates(noise: NoiseConfig, fact_type: str) -> dict[int, float]:
    """Return the probability that a label is flipped, by label code."""
    rates = noise.rates(fact_type)
    return {CONSISTENT: rates.to_hallucinated, HALLUCINATED: rates.to_consistent}


def _read_human(config: HumanLabelsConfig, types: Sequence[str]) -> dict[tuple[str, int], tuple[str, dict[str, int]]]:
    chosen = config.types or types
    human = {}
    for place, (text, labels) in majority_labels(read_answers([config.path], types)).items():
        wanted = {name: label for name, label in labels.items() if name in chosen}
        if wanted:
            human[place] = text, wanted
    if not human:
        raise UserError(
            f"{config.path} holds no label of the types {', '.join(chosen)}: label some, or change label.human."
        )
    return human
