"""Counters, gauges and histograms on top of Ray's: declared once, with the label values that they can have.

Ray exports what a process records, from each node, under the name with ``ray_`` before it. Ray's own object is made
when a process first records: a declaration costs nothing, and may be imported anywhere. Without Ray nothing is exported
and nothing fails. A gauge is exported while its process lives, and not while it is NaN; the ``_sum`` of a histogram is
made of the middles of its buckets, so that quantiles say more than means.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

if TYPE_CHECKING:
    from ray.util import metrics as ray_metrics

OTHER: Final = "other"
"""Label value for what a metric does not list; only where the metric lists it."""
ANY: Final = "*"
"""Stands in a metric's list for values that a run's configuration names; they are exported as they are."""


@dataclass(frozen=True, kw_only=True)
class Instrument(ABC):
    """A declared metric.

    Example: ``Counter(name="fgaif_verified_facts_total", unit="facts", description="...",
    labels={"verifier": ("first", "second")}).inc(3, verifier="first")``
    """

    kind: ClassVar[str]

    name: str
    """By Prometheus' conventions: a base unit as suffix, ``_total`` for counters."""
    unit: str
    """What is counted or measured, in the plural."""
    description: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The values that each label can have; all of them are needed to record."""

    def _labels(self, given: Mapping[str, str]) -> dict[str, str]:
        """The labels of a record.

        Raises:
            ValueError: a label is missing or not declared, or has a value that the metric does not list.
        """
        if set(given) != set(self.labels):
            raise ValueError(f"{self.name} has the labels {sorted(self.labels)}, not {sorted(given)}")
        found = {}
        for label, value in given.items():
            values = self.labels[label]
            known = value in values or ANY in values
            if not known and OTHER not in values:
                raise ValueError(f"{self.name} has no {label} {value!r}")
            found[label] = value if known else OTHER
        return found

    def _ray(self) -> Any:
        """Ray's object of this process."""
        if self.name not in _RAY:
            _RAY[self.name] = self._create()
        return _RAY[self.name]

    @abstractmethod
    def _create(self) -> Any:
        """A new object of Ray's for this metric."""


_RAY: dict[str, Any] = {}


class Counter(Instrument):
    """Only goes up."""

    kind = "counter"

    def inc(self, value: float = 1, **labels: str) -> None:
        """Add to it; nothing where the value is 0.

        Raises:
            ValueError: the value is negative or not finite, or the labels are not the declared ones.
        """
        checked = self._labels(labels)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{self.name} cannot grow by {value}")
        if value:
            self._ray().inc(value, tags=checked)

    def _create(self) -> "ray_metrics.Counter":
        from ray.util import metrics as ray_metrics  # here: whoever declares or imports a metric need not load Ray

        return ray_metrics.Counter(self.name, self.description, tuple(self.labels))


class Gauge(Instrument):
    """Holds its last value as long as the process lives."""

    kind = "gauge"

    def set(self, value: float, **labels: str) -> None:
        """Replace the value; NaN stands for nothing to show, and is not exported.

        Raises:
            ValueError: the labels are not the declared ones.
        """
        self._ray().set(float(value), tags=self._labels(labels))

    def _create(self) -> "ray_metrics.Gauge":
        from ray.util import metrics as ray_metrics  # here: whoever declares or imports a metric need not load Ray

        return ray_metrics.Gauge(self.name, self.description, tuple(self.labels))


@dataclass(frozen=True, kw_only=True)
class Histogram(Instrument):
    """Counts values by bucket."""

    kind: ClassVar[str] = "histogram"

    boundaries: tuple[float, ...]
    """Upper ends of the buckets, rising; one more holds what is larger."""

    def observe(self, value: float, **labels: str) -> None:
        """Count a value.

        Raises:
            ValueError: the labels are not the declared ones.
        """
        self._ray().observe(float(value), tags=self._labels(labels))

    def _create(self) -> "ray_metrics.Histogram":
        from ray.util import metrics as ray_metrics  # here: whoever declares or imports a metric need not load Ray

        return ray_metrics.Histogram(self.name, self.description, list(self.boundaries), tuple(self.labels))
