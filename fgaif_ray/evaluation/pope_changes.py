"""What alignment changes in POPE's metrics, with paired bootstrap intervals over images."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from fgaif_ray.evaluation.pope import FIGURES, PopeQuestion, says_yes
from fgaif_ray.statistics.intervals import Floats, estimate_figures, ratios

_OUTCOMES: Final = ((True, True), (True, False), (False, True), (False, False))
"""Label and answer, "yes" is True: hits, misses, false alarms, right rejections."""
_WIDTH: Final = len(_OUTCOMES)

Said = Mapping[tuple[str, str], str]
"""``(image, question text)`` -> what a model said."""


def compare_splits(
    splits: Mapping[str, Sequence[PopeQuestion]], before: Said, after: Said, seed: int = 0
) -> dict[str, Any]:
    """Subtract the metrics of ``score_splits`` before from those after.

    Each bootstrap sample draws the same images for both policies and all splits.

    Returns:
        FIGURES (changes of the means over the splits) and ``splits``, in the shape of ``score_splits``: each a
        ``value`` and its 95 % ``interval``, None where not defined.
    """
    questions = [(place, one) for place, split in enumerate(splits.values()) for one in split]
    rows = np.zeros((len(questions), 2, len(splits), _WIDTH))
    for row, (place, one) in enumerate(questions):
        for side, said in enumerate((before, after)):
            rows[row, side, place, _OUTCOMES.index((one.label, says_yes(said[one.image, one.text])))] = 1

    def changes(sums: Floats) -> Floats:
        """``[samples, 2 * splits * outcomes]`` to ``[samples, (splits + 1) * figures]``, the means last."""
        counts = sums.reshape(len(sums), 2, len(splits), _WIDTH)
        found = np.diff(_figures(counts), axis=1)[:, 0]  # [samples, splits, figures]
        values: Floats = np.concatenate([found, found.mean(axis=1, keepdims=True)], axis=1)
        return values.reshape(len(sums), -1)

    images = [one.image for _, one in questions]
    estimates = iter(estimate_figures(images, rows.reshape(len(rows), -1), changes, seed=seed))
    by_split = {name: {figure: next(estimates).to_dict() for figure in FIGURES} for name in splits}
    return {figure: next(estimates).to_dict() for figure in FIGURES} | {"splits": by_split}


def _figures(counts: Floats) -> Floats:
    """``[..., outcomes]`` to ``[..., figures]`` in the order of FIGURES."""
    hits, misses, false_alarms, rejections = np.moveaxis(counts, -1, 0)
    total = hits + misses + false_alarms + rejections
    found = {
        "accuracy": ratios(hits + rejections, total),
        "precision": ratios(hits, hits + false_alarms),
        "recall": ratios(hits, hits + misses),
        "f1": ratios(2 * hits, 2 * hits + false_alarms + misses),
        "yes_ratio": ratios(hits + false_alarms, total),
    }
    return np.stack([found[name] for name in FIGURES], axis=-1)
