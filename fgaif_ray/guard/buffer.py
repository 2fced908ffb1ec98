"""The segments of an answer that is still being written."""

from fgaif_ray.segments import Span, split_segments


class SegmentBuffer:
    """Collects an answer piece by piece and tells which segments have ended.

    A segment has ended when the next one has begun: until then the end of a sentence may be that of an abbreviation,
    and a short one may join it. What was told once stays, also where later text would move an end, as a closing quote
    does.
    """

    def __init__(self) -> None:
        self.text = ""
        """All of the answer so far."""
        self._told = 0

    def add(self, piece: str) -> None:
        """Append what has come."""
        self.text += piece

    def take(self, *, final: bool = False) -> list[Span]:
        """Return the segments that have ended since the last call.

        Args:
            final: whether the answer is over, so that the last segment has ended too.
        """
        start = self._told
        spans = [Span(start + one.start, start + one.end) for one in split_segments(self.text[start:])]
        if not final:
            spans = spans[:-1]
        if spans:
            self._told = spans[-1].end
        return spans
