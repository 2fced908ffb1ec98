"""Whole answers: asked for, judged, and annotated, chosen or stripped."""

from collections.abc import Mapping, Sequence
from typing import Any

from actors.guard.judge import AnswerJudge, UnjudgedError, unjudgeable
from actors.guard.metrics import record_judged
from actors.guard.upstream import Json, Upstream
from actors.rewards.requests import together
from actors.rewards.service_error import ServiceError
from fgaif_ray.config import ChatGuardConfig
from fgaif_ray.errors import ItemError
from fgaif_ray.guard.chat import ImageQuestion, read_question
from fgaif_ray.guard.choosing import rank
from fgaif_ray.guard.judgement import DIGITS, AnswerJudgement, judgement_json, unjudged_json
from fgaif_ray.guard.stripping import strip_answer
from fgaif_ray.segments import Span

COARSE_VERDICT = "the reward models judge whole answers and cannot say what to cut"
OUT_OF_DOMAIN = "the images are far from what the reward models know: the answer is as it was written"
USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")


def question_of(body: Mapping[str, Any], config: ChatGuardConfig) -> ImageQuestion | UnjudgedError | None:
    """What answers to a request are judged by; None without images, the reason where ``guard.unjudged`` lets it pass.

    Raises:
        ServiceError: it cannot be judged, and is refused for it.
    """
    try:
        return read_question(body)
    except ItemError as error:
        unjudged = unjudgeable(error)
        if config.unjudged == "refuse":
            raise unjudged.error from error
        return unjudged


def wanted_answers(body: Mapping[str, Any]) -> int:
    """How many answers the caller asks for."""
    count = body.get("n") or 1
    return count if isinstance(count, int) and count > 0 else 1


def should_cut(judged: AnswerJudgement, question: ImageQuestion) -> bool:
    """Tell whether verdicts may take parts out of an answer."""
    return judged.trusted and question.cuttable and not judged.coarse


def note_on(judged: AnswerJudgement, config: ChatGuardConfig) -> str | None:
    """Why verdicts have not done what the mode does; None where they have."""
    if not judged.trusted:
        return OUT_OF_DOMAIN
    return COARSE_VERDICT if judged.coarse and config.mode == "strip" else None


class GuardedAnswers:
    """Answers a request that does not stream."""

    def __init__(self, upstream: Upstream, judge: AnswerJudge, config: ChatGuardConfig) -> None:
        self._upstream, self._judge, self._config = upstream, judge, config

    async def answer(self, body: Json) -> Json:
        """Return the chat completion with the field ``fgaif`` in each choice.

        Raises:
            ServiceError: the endpoint has no answer, or it cannot be judged.
        """
        question = question_of(body, self._config)
        if not isinstance(question, ImageQuestion):
            answer = await self._upstream.complete(body)
            field = None if question is None else unjudged_json(str(question.error))
            for choice in choices_of(answer):
                choice["fgaif"] = field
            return answer
        best = self._config.mode == "best-of-n"
        answer = await self.sample(body) if best else await self._upstream.complete(body)
        choices = choices_of(answer)
        texts = {index: text for index, choice in enumerate(choices) if (text := content_of(choice)) is not None}
        for choice in choices:
            choice["fgaif"] = None
        try:
            judged = dict(zip(texts, await self._judge.judge(question, list(texts.values())), strict=True))
        except UnjudgedError as error:
            if self._config.unjudged == "refuse":
                raise error.error from error
            for index in texts:
                choices[index]["fgaif"] = unjudged_json(str(error.error))
            answer["choices"] = choices[: wanted_answers(body)] if best else choices
            return answer
        for index, one in judged.items():
            self._treat(choices[index], one, question)
        if best and len(judged) == len(choices):
            answer["choices"] = self._best(choices, [judged[index] for index in range(len(choices))])
        answer["choices"] = answer["choices"][: wanted_answers(body)] if best else choices
        return answer

    async def sample(self, body: Json) -> Json:
        """Ask for ``guard.n`` answers, in one request if the endpoint gives as many, else in several.

        Raises:
            ServiceError: the endpoint has no answer, or the caller wants more than there will be.
        """
        count = self._config.n
        if wanted_answers(body) > count:
            raise ServiceError(422, "invalid_request", f"n: the guard returns the best of {count} answers, no more")
        try:
            answer = await self._upstream.complete(body | {"n": count})
        except ServiceError as error:
            if error.code != "upstream_refused":
                raise
            answer = await self._upstream.complete(body | {"n": 1})  # an endpoint that knows no n, if that was it
        choices = choices_of(answer)
        missing = count - len(choices)
        if choices and missing > 0:
            more = await together([self._upstream.complete(_seeded(body, number)) for number in range(1, missing + 1)])
            for one in more:
                choices += choices_of(one)
                _add_usage(answer, one)
        for index, choice in enumerate(choices):
            choice["index"] = index
        answer["choices"] = choices[:count]
        return answer

    def _treat(self, choice: Json, judged: AnswerJudgement, question: ImageQuestion) -> None:
        cuts: list[Json] = []
        if self._config.mode == "strip" and should_cut(judged, question):
            text = choice["message"]["content"]
            spans = [Span(one.start, one.end) for one in judged.segments]
            kept, cut = strip_answer(text, spans, [self._is_false(one.hallucination) for one in judged.segments])
            if cut:
                choice["message"]["content"] = kept if kept.strip() else self._config.nothing_left
                choice["logprobs"] = None  # they were of the tokens of another text
                cuts = [one.to_json() for one in cut]
        record_judged(judged, len(cuts))
        choice["fgaif"] = judgement_json(judged, cuts, note_on(judged, self._config))

    def _is_false(self, hallucination: float) -> bool:
        return hallucination > self._config.threshold

    def _best(self, choices: Sequence[Json], judged: Sequence[AnswerJudgement]) -> list[Json]:
        """The choices from best to worst, with the scores of all of them."""
        order = rank(judged, self._config.choose_by)
        scores = [
            {
                "reward": round(judged[index].reward, DIGITS),
                "mean_reward": round(judged[index].mean_reward, DIGITS),
                "hallucination": round(judged[index].hallucination, DIGITS),
            }
            for index in order
        ]
        ordered = [choices[index] for index in order]
        for place, choice in enumerate(ordered):
            choice["index"] = place
            choice["fgaif"]["candidates"] = scores
        return ordered


def choices_of(answer: Mapping[str, Any]) -> list[Json]:
    """The choices of an answer.

    Raises:
        ServiceError: it has none of the form that an OpenAI-compatible endpoint gives them.
    """
    choices = answer.get("choices")
    if isinstance(choices, list) and all(isinstance(one, dict) for one in choices):
        return choices
    raise ServiceError(502, "upstream_failed", "the endpoint's answer has no choices")


def content_of(choice: Mapping[str, Any]) -> str | None:
    """The text of a choice; None where it is a call of a tool."""
    message = choice.get("message")
    content = message.get("content") if isinstance(message, Mapping) else None
    return content if isinstance(content, str) else None


def _seeded(body: Json, number: int) -> Json:
    """The request for one more answer; with the caller's seed it would be the same one."""
    seed = body.get("seed")
    return body | {"n": 1} | ({"seed": seed + number} if isinstance(seed, int) else {})


def _add_usage(answer: Json, more: Mapping[str, Any]) -> None:
    """Count the tokens of a further answer."""
    usage, added = answer.get("usage"), more.get("usage")
    if isinstance(usage, dict) and isinstance(added, Mapping):
        for name in USAGE:
            if isinstance(usage.get(name), int) and isinstance(added.get(name), int):
                usage[name] += added[name]
