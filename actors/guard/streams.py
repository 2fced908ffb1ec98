"""Streamed answers: each segment is sent once it is judged."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from actors.guard.answers import GuardedAnswers, choices_of, note_on, question_of, should_cut
from actors.guard.batches import in_batches
from actors.guard.judge import AnswerJudge, UnjudgedError
from actors.guard.metrics import record_judged
from actors.guard.upstream import Json, Upstream
from fgaif_ray.config import ChatGuardConfig
from fgaif_ray.guard.buffer import SegmentBuffer
from fgaif_ray.guard.chat import ImageQuestion
from fgaif_ray.guard.judgement import AnswerJudgement, SegmentJudgement, judge_spans, judgement_json, unjudged_json
from fgaif_ray.guard.sse import DONE, write_event
from fgaif_ray.guard.stripping import AnswerStripper
from fgaif_ray.segments import Span

_HEAD: Final = ("id", "object", "created", "model", "system_fingerprint", "service_tier")
"""Fields of a chunk that are the same in all of a stream."""


@dataclass(slots=True)
class _Choice:
    """One of the answers of a stream, as far as it has come."""

    buffer: SegmentBuffer = field(default_factory=SegmentBuffer)
    stripper: AnswerStripper = field(default_factory=AnswerStripper)
    segments: list[SegmentJudgement] = field(default_factory=list)
    last: AnswerJudgement | None = None
    """The verdicts on the longest part that was judged."""
    finish: Json | None = None
    """The choice of the chunk that ended it."""
    strips: bool = False
    """Whether the verdicts may cut, as the first of them says."""
    passed: int = 0
    """Characters that have been judged, or let pass."""
    role: Json = field(default_factory=dict)
    """The role, which goes with what is sent first: until then an error has a status of its own."""
    sent: bool = False
    """Whether any text was sent."""


class GuardedStreams:
    """Answers a request that streams."""

    def __init__(
        self, upstream: Upstream, judge: AnswerJudge, config: ChatGuardConfig, answers: GuardedAnswers
    ) -> None:
        self._upstream, self._judge, self._config, self._answers = upstream, judge, config, answers

    async def events(self, body: Json) -> AsyncGenerator[bytes]:
        """Yield the server-sent events of a streamed answer.

        Raises:
            ServiceError: the endpoint has no answer, or it cannot be judged.
        """
        question = question_of(body, self._config)
        if not isinstance(question, ImageQuestion):
            events = self._untouched(body, None if question is None else unjudged_json(str(question.error)))
        elif self._config.mode == "best-of-n":
            events = self._whole(body)
        else:
            events = _JudgedStream(self._upstream, self._judge, self._config, question).events(body)
        async for event in events:
            yield event
        yield write_event(DONE)

    async def _untouched(self, body: Json, verdict: Json | None) -> AsyncGenerator[bytes]:
        async with self._upstream.stream(body) as chunks:
            async for chunk in chunks:
                for choice in choices_of(chunk):
                    if choice.get("finish_reason") is not None:
                        choice["fgaif"] = verdict
                yield write_event(chunk)

    async def _whole(self, body: Json) -> AsyncGenerator[bytes]:
        """The best answer, which is known when all are there."""
        whole = {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
        answer = await self._answers.answer(whole)
        head = _head(answer) | {"object": "chat.completion.chunk"}
        for choice in choices_of(answer):
            index = choice.get("index", 0)
            delta = {name: value for name, value in (choice.get("message") or {}).items() if value is not None}
            yield write_event(head | {"choices": [{"index": index, "delta": delta, "finish_reason": None}]})
            end = {"index": index, "delta": {}, "finish_reason": choice.get("finish_reason"), "fgaif": choice["fgaif"]}
            yield write_event(head | {"choices": [end]})
        options = body.get("stream_options")
        if isinstance(options, Mapping) and options.get("include_usage") and "usage" in answer:
            yield write_event(head | {"choices": [], "usage": answer["usage"]})


class _JudgedStream:
    """One stream of the modes that judge while the answer is written."""

    def __init__(
        self, upstream: Upstream, judge: AnswerJudge, config: ChatGuardConfig, question: ImageQuestion
    ) -> None:
        self._upstream, self._judge, self._config, self._question = upstream, judge, config, question
        self._choices: dict[int, _Choice] = {}
        self._head: Json = {}
        self._unjudged: UnjudgedError | None = None

    async def events(self, body: Json) -> AsyncGenerator[bytes]:
        usage: Json | None = None
        async with self._upstream.stream(body) as chunks:
            async for batch in in_batches(chunks):
                for chunk in batch:
                    self._head = _head(chunk)
                    for choice in choices_of(chunk):
                        event = self._take(choice)
                        if event is not None:
                            yield event
                    if chunk.get("usage") and not chunk["choices"]:
                        usage = chunk
                for event in await self._advance():
                    yield event
        for state in self._choices.values():  # an endpoint that ends without saying how
            state.finish = state.finish or {"finish_reason": "stop"}
        for event in await self._advance():
            yield event
        if usage is not None:
            yield write_event(usage)

    def _take(self, choice: Json) -> bytes | None:
        """Take in a piece of an answer; returns what of it is no text, which need not wait."""
        index = choice.get("index", 0)
        state = self._choices.setdefault(index, _Choice())
        delta = choice.get("delta") or {}
        state.buffer.add(delta.get("content") or "")
        if choice.get("finish_reason") is not None:
            state.finish = choice
        rest = {name: value for name, value in delta.items() if name not in ("content", "role") and value is not None}
        if "role" in delta:
            state.role = {"role": delta["role"]}
        return self._event(index, rest) if rest else None

    async def _advance(self) -> list[bytes]:
        """Judge what has ended since the last time; returns what may be sent."""
        if self._unjudged is None:
            ended = {index: state.buffer.take(final=state.finish is not None) for index, state in self._choices.items()}
            ended = {index: spans for index, spans in ended.items() if spans}
            parts = [self._choices[index].buffer.text[: spans[-1].end] for index, spans in ended.items()]
            try:
                judged = await self._judge.judge(self._question, parts) if parts else []
            except UnjudgedError as error:
                if self._config.unjudged == "refuse":
                    raise error.error from error
                self._unjudged = error
            else:
                events = [
                    event
                    for (index, spans), one in zip(ended.items(), judged, strict=True)
                    for event in self._judged(index, spans, one)
                ]
                return events + self._ends()
        return [event for index in self._choices for event in self._let_pass(index)] + self._ends()

    def _judged(self, index: int, spans: list[Span], judged: AnswerJudgement) -> list[bytes]:
        state = self._choices[index]
        segments = judge_spans(judged, state.buffer.text, spans)
        if state.last is None:
            state.strips = self._config.mode == "strip" and should_cut(judged, self._question)
        state.segments += segments
        state.last = judged
        state.passed = spans[-1].end
        if state.strips:
            limit = self._config.threshold
            text = "".join(state.stripper.push(one.text, one.hallucination > limit) for one in segments)
        else:
            text = "".join(one.text for one in segments)
        return self._text(index, text, {"segments": [one.to_json() for one in segments]})

    def _let_pass(self, index: int) -> list[bytes]:
        state = self._choices[index]
        text = state.stripper.finish() + state.buffer.text[state.passed :]
        state.passed, state.stripper = len(state.buffer.text), AnswerStripper()
        return self._text(index, text, None)

    def _ends(self) -> list[bytes]:
        """The last chunks of the answers that are over."""
        events = []
        for index, state in list(self._choices.items()):
            if state.finish is None:
                continue
            rest = state.stripper.finish()
            cuts = [one.to_json() for one in state.stripper.cuts]
            if cuts and not state.sent and not rest.strip():
                rest = self._config.nothing_left
            events += self._text(index, rest, None)
            reason = state.finish.get("finish_reason")
            end = {"index": index, "delta": state.role, "finish_reason": reason, "fgaif": self._verdict(state, cuts)}
            events.append(write_event(self._head | {"choices": [end]}))
            del self._choices[index]
        return events

    def _verdict(self, state: _Choice, cuts: list[Json]) -> Json | None:
        if self._unjudged is not None:
            return unjudged_json(str(self._unjudged.error))
        if state.last is None:
            return None  # no text, as a call of a tool has none
        whole = replace(state.last, segments=tuple(state.segments))
        record_judged(whole, len(cuts))
        return judgement_json(whole, cuts, note_on(whole, self._config))

    def _text(self, index: int, text: str, verdict: Json | None) -> list[bytes]:
        if not text:
            return []
        self._choices[index].sent = True
        return [self._event(index, {"content": text}, verdict)]

    def _event(self, index: int, delta: Mapping[str, Any], verdict: Json | None = None) -> bytes:
        state = self._choices[index]
        choice = {"index": index, "delta": {**state.role, **delta}, "finish_reason": None}
        state.role = {}
        return write_event(self._head | {"choices": [choice if verdict is None else choice | {"fgaif": verdict}]})


def _head(chunk: Mapping[str, Any]) -> Json:
    return {name: chunk[name] for name in _HEAD if name in chunk}
