"""Segments cut from an answer so that what stays is grammatical, piece by piece or at once.

A clause is cut alone where the rest of its sentence stands without it: "There is a cat, and a red ball." becomes "There
is a cat."; the clause after a cut one becomes a sentence if it can be one, and else goes too. A sentence that begins
with a pronoun goes with the one before it, which said what the pronoun stands for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fgaif_ray.guard.balance import ends_paragraph, is_balanced
from fgaif_ray.guard.clauses import (
    as_sentence,
    ends_sentence,
    full_stop,
    refers_back,
    split_tail,
    stands_alone,
    white_space,
)
from fgaif_ray.segments import Span

CutReason = Literal["hallucinated", "depends"]
"""``depends``: it cannot stand without what was cut, or shares a quote or bracket with it."""


@dataclass(frozen=True, slots=True)
class CutSegment:
    """A segment that was cut.

    Example: ``CutSegment(1, "and a red ball.", "hallucinated")``
    """

    index: int
    """Of the segment."""
    text: str
    reason: CutReason

    def to_json(self) -> dict[str, Any]:
        """The cut as the guard answers it."""
        return {"segment": self.index, "text": self.text, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class _Segment:
    index: int
    text: str
    cut: bool


class AnswerStripper:
    """Takes the segments of an answer in order and gives back what may be sent of it.

    Only what may still change waits: the mark after a clause until the next verdict, and a clause that cannot stand
    alone until the one that carries it.
    """

    def __init__(self) -> None:
        self.cuts: list[CutSegment] = []
        """What has been cut so far."""
        self._count = 0
        self._unit: list[_Segment] = []  # segments that share a quote or bracket, as far as they have come
        self._sent = False  # whether anything has been given back
        self._tail = ""  # behind what was given back: mark and white space, or white space alone
        self._tail_ends = True  # whether the sentence before the tail has its end
        self._waiting: list[_Segment] = []  # of the sentence, kept, but unable to stand
        self._continues = False  # whether the next clause belongs to a sentence of which something was given back
        self._broken = False  # whether the clause before it in its sentence was cut
        self._after_cut = False

    def push(self, text: str, cut: bool) -> str:
        """Take the next segment; returns what may be sent now.

        Args:
            text: the segment with the white space behind it.
            cut: whether it has to go.
        """
        self._unit.append(_Segment(self._count, text, cut))
        self._count += 1
        whole = "".join(one.text for one in self._unit)
        return self._take_unit() if is_balanced(whole) or ends_paragraph(whole) else ""

    def finish(self) -> str:
        """Return the rest of what may be sent."""
        sent = self._take_unit() if self._unit else ""
        if self._waiting:  # an answer that was broken off, or a fragment that nothing was cut from
            sent += self._send("".join(one.text for one in self._waiting))
            self._waiting = []
        tail = self._tail
        if not self._tail_ends and self._broken:
            tail = full_stop(tail, None)
        elif self._after_cut:
            tail = tail.rstrip()
        return sent + tail if self._sent else sent

    def _take_unit(self) -> str:
        unit, self._unit = self._unit, []
        text = "".join(one.text for one in unit)
        if any(one.cut for one in unit):
            return self._cut(unit, text)
        if self._broken:
            promoted = as_sentence(text)
            if promoted is None:
                return self._cut(unit, text)
            self._end_sentence(None)
            self._broken = False
            unit = [_Segment(unit[0].index, promoted, cut=False)]
        elif self._after_cut and not self._waiting and refers_back(text):
            return self._cut(unit, text)
        return self._keep(unit)

    def _keep(self, unit: list[_Segment]) -> str:
        self._after_cut = False
        self._waiting += unit
        last = unit[-1].text
        ends = ends_sentence(last)
        whole = "".join(one.text for one in self._waiting)
        if not (ends or self._continues or stands_alone(whole) or stands_alone("".join(one.text for one in unit))):
            return ""
        self._waiting = []
        self._continues = not ends
        sent = self._send(whole)
        self._tail_ends = ends
        return sent

    def _cut(self, unit: list[_Segment], text: str) -> str:
        for one in (*self._waiting, *unit):
            self.cuts.append(CutSegment(one.index, one.text.strip(), "hallucinated" if one.cut else "depends"))
        self._waiting = []
        self._after_cut = True
        if self._sent:
            self._keep_line_break(white_space(text))
        if ends_sentence(text):
            self._end_sentence(text)
            self._broken = False
        else:
            self._broken = True
        return ""

    def _end_sentence(self, last: str | None) -> None:
        """Put an end to the sentence of which something was given back, if it has none."""
        if not self._tail_ends:
            self._tail = full_stop(self._tail, last) + (white_space(self._tail) or white_space(last or ""))
            self._tail_ends = True
        self._continues = False

    def _keep_line_break(self, behind: str) -> None:
        """Keep the end of a line or paragraph that stood behind what was cut."""
        space = white_space(self._tail)
        if behind.count("\n") > space.count("\n"):
            self._tail = self._tail[: len(self._tail) - len(space)] + behind

    def _send(self, text: str) -> str:
        body, tail = split_tail(text)
        if not self._sent and self.cuts:
            body = body.lstrip()
        sent = self._tail + body if self._sent else body
        self._sent, self._tail = True, tail
        return sent


def strip_answer(text: str, spans: Sequence[Span], cut: Sequence[bool]) -> tuple[str, list[CutSegment]]:
    """Cut segments from a whole answer.

    Args:
        text: the answer.
        spans: its segments, which cover it.
        cut: for each whether it has to go.

    Returns:
        What stays, the very text where nothing has to go, and what was cut.
    """
    stripper = AnswerStripper()
    pieces = [stripper.push(text[span.start : span.end], one) for span, one in zip(spans, cut, strict=True)]
    return "".join(pieces) + stripper.finish(), stripper.cuts
