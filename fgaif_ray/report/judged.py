"""The judged examples of a report: pictures, answers, verdicts and rewards, as ``examples.json`` holds them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fgaif_ray.evaluation import BEFORE

DRAWN, IMPROVED, WORST = "drawn", "mended", "worst"
GROUPS: Final = (DRAWN, IMPROVED, WORST)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedSegment:
    """A segment of an answer with the verdicts on it.

    Example::

        JudgedSegment(
            start=0,
            end=22,
            labels={"existence": 1, "attribute": 2, "relation": 0},
            probabilities={"existence": (0.1, 0.8, 0.1), "attribute": (0.1, 0.2, 0.7), "relation": (0.9, 0.1, 0.0)},
            rewards={"existence": 0.7, "attribute": -0.5, "relation": 0.1},
        )
    """

    start: int
    """First character in the answer."""
    end: int
    """The character after its last one."""
    labels: Mapping[str, int] | None
    """The truth's label code by fact type; None where the truth is not known."""
    probabilities: Mapping[str, Sequence[float]] | None
    """``[classes]`` the reward models' probabilities by fact type; None where they cannot read the answer."""
    rewards: Mapping[str, float] | None
    """The weighted reward by fact type; None where there are no probabilities."""

    @property
    def predicted(self) -> dict[str, int] | None:
        """The reward models' most probable class by fact type; None if they have not scored the segment."""
        if self.probabilities is None:
            return None
        return {kind: max(range(len(shares)), key=shares.__getitem__) for kind, shares in self.probabilities.items()}

    @property
    def verdicts(self) -> dict[str, int]:
        """The verdict by fact type: the truth's where it is known, else the reward models'."""
        return (self.predicted or {}) | dict(self.labels or {})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "JudgedSegment":
        """Read the form that ``to_json`` returns."""
        return cls(
            start=value["start"],
            end=value["end"],
            labels=value["labels"],
            probabilities=value["probabilities"],
            rewards=value["rewards"],
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable form."""
        return {
            "start": self.start,
            "end": self.end,
            "labels": self.labels,
            "probabilities": self.probabilities,
            "rewards": self.rewards,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedAnswer:
    """What one of the policies said about an image, judged segment by segment.

    Example: ``JudgedAnswer(text="There is a red circle.", finish_reason="stop", segments=(segment,))``
    """

    text: str
    finish_reason: str
    """``stop`` or ``length``."""
    segments: tuple[JudgedSegment, ...]
    """``[segments]``, which cover the text in order."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "JudgedAnswer":
        """Read the form that ``to_json`` returns."""
        segments = tuple(JudgedSegment.from_json(segment) for segment in value["segments"])
        return cls(text=value["response"], finish_reason=value["finish_reason"], segments=segments)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable form."""
        return {
            "response": self.text,
            "finish_reason": self.finish_reason,
            "segments": [segment.to_json() for segment in self.segments],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedExample:
    """An image and what both policies said about it.

    Example::

        JudgedExample(
            group="drawn",
            name="heldout-000007.png",
            picture="data:image/png;base64,...",
            enlarged=True,
            prompt="Describe this image.",
            truth=("large red circle, top left",),
            before=before,
            after=after,
        )
    """

    group: str
    """One of ``GROUPS``."""
    name: str
    """Of the image file, or files."""
    picture: str
    """The image as a data URL; several side by side."""
    enlarged: bool
    """Whether the image is so small that it is shown enlarged."""
    prompt: str
    truth: tuple[str, ...] | None
    """The objects in the image in words; None where they are not known."""
    before: JudgedAnswer
    after: JudgedAnswer

    def of(self, which: str) -> JudgedAnswer:
        """Return the answer of one policy, ``BEFORE`` or ``AFTER`` alignment."""
        return self.before if which == BEFORE else self.after

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "JudgedExample":
        """Read the form that ``to_json`` returns; in older ones, all examples are drawn and may not be enlarged."""
        return cls(
            group=value.get("group", DRAWN),
            name=value["name"],
            picture=value["picture"],
            enlarged=value.get("enlarged", False),
            prompt=value["prompt"],
            truth=None if value["truth"] is None else tuple(value["truth"]),
            before=JudgedAnswer.from_json(value["before"]),
            after=JudgedAnswer.from_json(value["after"]),
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable form."""
        return {
            "group": self.group,
            "name": self.name,
            "picture": self.picture,
            "enlarged": self.enlarged,
            "prompt": self.prompt,
            "truth": None if self.truth is None else list(self.truth),
            "before": self.before.to_json(),
            "after": self.after.to_json(),
        }
