"""Means over seeds with Student's t intervals, and paired differences.

Three to five seeds are too few to draw from with replacement: a bootstrap over them gives intervals that are far too
narrow, so the mean's t interval is used. Differences are taken seed by seed, which removes what a seed does to both.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fgaif_ray.statistics.intervals import CONFIDENCE


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over seeds; the interval needs two of them.

    Example: ``Mean(2.0, (-0.48, 4.48), 1.0, 3)`` of the values 1, 2 and 3
    """

    value: float
    interval: tuple[float, float] | None
    standard_deviation: float | None
    count: int


def student_t_cdf(t: float, degrees: int) -> float:
    """Return P(T <= t) of Student's distribution (Abramowitz and Stegun 26.7.3 and 26.7.4, exact for whole degrees).

    Raises:
        ValueError: ``degrees`` is less than 1.
    """
    if degrees < 1:
        raise ValueError(f"need at least one degree of freedom, not {degrees}")
    angle = math.atan2(abs(t), math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = degrees % 2 == 1
    term = total = cosine if odd else 1.0
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if odd:
        inside = 2 / math.pi * (angle + (sine * total if degrees > 1 else 0.0))
    else:
        inside = sine * total
    return 0.5 + math.copysign(inside / 2, t)


def student_t_quantile(probability: float, degrees: int) -> float:
    """Return the t with P(T <= t) = ``probability``.

    Raises:
        ValueError: the probability is not inside (0, 1), or ``degrees`` is less than 1.
    """
    if not 0 < probability < 1:
        raise ValueError(f"the probability must lie inside (0, 1), not {probability}")
    if probability < 0.5:
        return -student_t_quantile(1 - probability, degrees)
    low, high = 0.0, 1.0
    while student_t_cdf(high, degrees) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_t_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def mean_interval(values: Sequence[float]) -> Mean:
    """Return the mean and its t interval.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("there are no values to take the mean of")
    count, mean = len(values), math.fsum(values) / len(values)
    quantile = student_t_quantile((1 + CONFIDENCE) / 2, max(count - 1, 1))
    if count == 1:
        return Mean(mean, None, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = quantile * deviation / math.sqrt(count)
    return Mean(mean, (mean - half, mean + half), deviation, count)


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Mean | None:
    """Return the mean of the differences to a reference with the same seeds; None where they share no seed.

    Args:
        values: seed -> metric.
        reference: seed -> the metric of what it is compared with.
    """
    seeds = sorted(values.keys() & reference.keys())
    return mean_interval([values[seed] - reference[seed] for seed in seeds]) if seeds else None
