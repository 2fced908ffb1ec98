"""Calibration of a verifier: the best thresholds on P(yes) for a labelled set, and their quality elsewhere.

A threshold fitted to facts looks better on them than it is. So its metrics come from cross-validation, with whole
images held out, beside those of the plain 0.5 and of the fit itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fgaif_ray.statistics.calibration import estimate_calibration_error
from fgaif_ray.statistics.folds import image_folds
from fgaif_ray.statistics.intervals import CONFIDENCE, Floats
from fgaif_ray.statistics.reliability import estimate_agreement

PLAIN: Final = 0.5
"""The threshold of a verifier that was not calibrated."""
FOLDS: Final = 10
BINS: Final = 10
"""Equal-width bins of P(yes) for the expected calibration error."""
_TIE: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Facts:
    """Verified facts whose truth is known, ``[facts]`` each."""

    images: Sequence[str]
    types: Sequence[str]
    consistent: NDArray[np.bool_]
    p_consistent: Floats
    weights: Floats

    def where(self, chosen: NDArray[np.bool_]) -> "Facts":
        """Select some of the facts."""
        places = np.flatnonzero(chosen).tolist()
        images, types = [self.images[place] for place in places], [self.types[place] for place in places]
        return Facts(images, types, self.consistent[chosen], self.p_consistent[chosen], self.weights[chosen])

    @property
    def has_both_classes(self) -> bool:
        """Tell whether right and wrong facts are among them."""
        return len(self.consistent) > 0 and bool(self.consistent.any()) and not self.consistent.all()


def choose_threshold(p_consistent: ArrayLike, consistent: ArrayLike, weights: ArrayLike) -> float:
    """Find the threshold with the best balanced accuracy on these facts.

    Every threshold between two neighbouring P(yes) gives the same verdicts: the middle stands for them, or 0.5 where
    it is among them. Among equally good ones the nearest to 0.5 is taken.

    Args:
        p_consistent: ``[facts]`` P(yes), in [0, 1].
        consistent: ``[facts]`` the truth.
        weights: ``[facts]`` how many facts each stands for.

    Returns:
        A threshold inside (0, 1).

    Raises:
        ValueError: the facts are all right or all wrong.
    """
    truth = np.asarray(consistent, dtype=bool)
    values, place = np.unique(np.asarray(p_consistent, dtype=np.float64), return_inverse=True)
    weight = np.asarray(weights, dtype=np.float64)
    if not truth.any() or truth.all():
        raise ValueError("a threshold takes facts that are right and facts that are wrong")
    right = np.bincount(place, weights=weight * truth, minlength=len(values))  # [values]
    wrong = np.bincount(place, weights=weight * ~truth, minlength=len(values))
    # A cut c calls the values from c on consistent; [values + 1]
    right_found = np.append(np.cumsum(right[::-1])[::-1], 0.0)
    wrong_found = np.insert(np.cumsum(wrong), 0, 0.0)
    scores = (right_found / right.sum() + wrong_found / wrong.sum()) / 2
    lower, upper = np.insert(values, 0, 0.0), np.append(values, 1.0)
    middles = np.where((lower < PLAIN) & (upper >= PLAIN), PLAIN, (lower + upper) / 2)
    possible = lower < upper  # no threshold lies below a P(yes) of 0 or above one of 1
    best = possible & (scores >= scores[possible].max() - _TIE)
    candidates = middles[best]
    return float(candidates[np.argmin(np.abs(candidates - PLAIN))])


def fit_thresholds(facts: Facts, types: Sequence[str]) -> dict[str, float]:
    """Find a threshold for each fact type.

    A type without right or without wrong facts takes the one of all facts together, and without those 0.5.
    """
    together = _fit(facts) if facts.has_both_classes else PLAIN
    thresholds = dict.fromkeys(types, together)
    for name in types:
        part = facts.where(np.array([kind == name for kind in facts.types], dtype=bool))
        if part.has_both_classes:
            thresholds[name] = _fit(part)
    return thresholds


def cross_validate(facts: Facts, types: Sequence[str]) -> NDArray[np.bool_] | None:
    """Judge each fact by thresholds that were fitted without its image, ``[facts]``; None with one image only."""
    if len(set(facts.images)) < 2:
        return None
    fold = image_folds(facts.images, FOLDS)
    verdicts = np.zeros(len(fold), dtype=bool)
    for held_out in np.unique(fold):
        inside = fold == held_out
        verdicts[inside] = judge(facts.where(inside), fit_thresholds(facts.where(~inside), types))
    return verdicts


def judge(facts: Facts, thresholds: Mapping[str, float]) -> NDArray[np.bool_]:
    """Judge facts by thresholds, ``[facts]``: True is consistent."""
    return facts.p_consistent >= np.array([thresholds[kind] for kind in facts.types], dtype=np.float64)


def calibrate(facts: Facts, types: Sequence[str]) -> dict[str, Any]:
    """Fit thresholds and measure them.

    Args:
        facts: right and wrong ones.
        types: the fact types that get a threshold.

    Returns:
        JSON-serialisable: ``thresholds`` by type, and under ``figures``, for ``all`` facts and each type, counts and
        ``accuracy``, ``balanced_accuracy`` and ``kappa`` with intervals ``at_half`` (threshold 0.5),
        ``cross_validated`` (what to expect of the calibrated thresholds; None with one image) and ``fitted``
        (optimistic), and the ``expected_calibration_error`` of P(yes).

    Raises:
        ValueError: the facts are all right or all wrong.
    """
    if not facts.has_both_classes:
        raise ValueError("a calibration takes facts that are right and facts that are wrong")
    thresholds = fit_thresholds(facts, types)
    verdicts = {
        "at_half": judge(facts, dict.fromkeys(types, PLAIN)),
        "cross_validated": cross_validate(facts, types),
        "fitted": judge(facts, thresholds),
    }
    everything = np.ones(len(facts.consistent), dtype=bool)
    of_type = {name: np.array([kind == name for kind in facts.types], dtype=bool) for name in types}
    return {
        "confidence": CONFIDENCE,
        "thresholds": thresholds,
        "figures": {
            name: _figures(
                facts.where(chosen),
                {how: None if given is None else given[chosen] for how, given in verdicts.items()},
            )
            for name, chosen in {"all": everything, **of_type}.items()
        },
    }


def _fit(facts: Facts) -> float:
    return choose_threshold(facts.p_consistent, facts.consistent, facts.weights)


def _figures(facts: Facts, verdicts: Mapping[str, NDArray[np.bool_] | None]) -> dict[str, Any]:
    counts = {
        "facts": len(facts.consistent),
        "consistent": int(facts.consistent.sum()),
        "images": len(set(facts.images)),
    }
    measured: dict[str, Any] = {}
    for how, given in verdicts.items():
        if given is None:
            measured[how] = None
            continue
        truth = facts.consistent.astype(np.int64)
        found = estimate_agreement(facts.images, truth, given.astype(np.int64), 2, weights=facts.weights)
        measured[how] = {name: estimate.to_dict() for name, estimate in found.items()}
    error = estimate_calibration_error(facts.images, facts.p_consistent, facts.consistent, facts.weights, BINS)
    return counts | measured | {"expected_calibration_error": error.to_dict()}
