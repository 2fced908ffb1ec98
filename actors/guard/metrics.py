"""Metrics of the guard."""

from actors import metrics
from fgaif_ray.guard.judgement import AnswerJudgement


def record_answer(path: str, status: int, code: str | None, seconds: float) -> None:
    """Export an answer; the error's code is in the log.

    Args:
        path: of the request; an unknown route counts as ``other``.
        status: of the answer.
        code: of its error.
        seconds: from the request to the end of the answer.
    """
    del code
    metrics.GUARD_REQUESTS.inc(route=path, status=str(status))
    metrics.GUARD_REQUEST_DURATION.observe(seconds, route=path)


def record_judged(judged: AnswerJudgement, cut: int) -> None:
    """Export what became of the segments of an answer."""
    metrics.GUARD_SEGMENTS.inc(len(judged.segments) - cut, outcome="kept")
    metrics.GUARD_SEGMENTS.inc(cut, outcome="cut")
