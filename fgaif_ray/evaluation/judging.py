"""A judge behind an OpenAI-compatible endpoint, called, paid and accounted for like fact extraction."""

import asyncio
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

from fgaif_ray.calls.answers import CallAnswer, call_key, model_identity
from fgaif_ray.calls.calls import Calls
from fgaif_ray.calls.chat_caller import Chat, ChatCaller
from fgaif_ray.calls.chat_connection import Completion
from fgaif_ray.calls.client import CallClient
from fgaif_ray.calls.coordinator import CallCoordinator
from fgaif_ray.calls.tokens import CallSize, estimate_prompt
from fgaif_ray.calls.unusable import UnusableAnswer
from fgaif_ray.config import JudgeConfig
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation.benchmarks.base import JudgeQuestion, Review

REVIEW_TOKENS = 200
"""Tokens that a review probably takes."""

ReviewPlace = TypeVar("ReviewPlace", bound=Hashable)


class Judge:
    """A judge that writes reviews.

    Example: ``review = await Judge(config, "http://127.0.0.1:8000/v1", None).review(question)``
    """

    def __init__(
        self, config: JudgeConfig, base_url: str | None, api_key: str | None, calls: Calls | None = None
    ) -> None:
        """Prepare the judge without calling anything.

        Args:
            config: the settings.
            base_url: where to call.
            api_key: bearer token; None for an endpoint without authentication.
            calls: known answers, limits and account; None calls freely.
        """
        self._identity = model_identity(config.model, config.serve_model)
        self._max_tokens = config.max_tokens
        self._options: dict[str, Any] = {"max_completion_tokens": config.max_tokens}
        if config.temperature is not None:
            self._options["temperature"] = config.temperature
        self._caller = ChatCaller(config, base_url, api_key, self._options, calls)

    def key(self, question: JudgeQuestion) -> str:
        """Return the content address of a call."""
        return call_key(model=self._identity, purpose="review", options=self._options, messages=question.messages)

    def size(self, question: JudgeQuestion) -> CallSize:
        """Estimate the tokens of a call."""
        completion = min(self._max_tokens, REVIEW_TOKENS)
        return CallSize(estimate_prompt(question.messages), completion, self._max_tokens)

    async def review(self, question: JudgeQuestion) -> Review:
        """Ask for one review; if the call brings none, return the reason.

        Raises:
            UserError: the endpoint cannot be used; stop.
        """
        chat = Chat(question.messages, self.key(question), self.size(question), _read)
        try:
            answer = await self._caller.answer(chat)
        except UnusableAnswer as error:
            return Review(None, str(error))
        return Review(answer.content) if answer.reason is None else Review(None, str(answer.error()))

    async def close(self) -> None:
        """Close the connections."""
        await self._caller.close()


def collect_reviews(
    config: JudgeConfig,
    base_url: str | None,
    api_key: str | None,
    run: str,
    questions: Mapping[ReviewPlace, JudgeQuestion],
    done: Callable[[], None] = lambda: None,
) -> dict[ReviewPlace, Review]:
    """Have every question reviewed. Equal ones are asked once, and those paid by an earlier attempt are not asked.

    Args:
        config: the settings.
        base_url: where to call.
        api_key: bearer token.
        run: folder of the run, which keeps answers (``judging-cache``) and account (``judging-ledger``).
        questions: by keys of the caller's choice, under which the reviews are returned.
        done: called after each.

    Raises:
        UserError: the endpoint cannot be used or the budget is used up. What was paid is kept.
    """

    async def work() -> list[Review | BaseException]:
        calls = CallClient(CallCoordinator(config, run), config, run)
        judge = Judge(config, base_url, api_key, calls)

        async def ask(question: JudgeQuestion) -> Review:
            review = await judge.review(question)
            done()
            return review

        try:
            return await asyncio.gather(*(ask(question) for question in questions.values()), return_exceptions=True)
        finally:
            await judge.close()
            await calls.close()

    results = asyncio.run(work())
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, UserError))  # an error of our own comes first
    return {place: result for place, result in zip(questions, results, strict=True) if isinstance(result, Review)}


def _read(completion: Completion, tokens: tuple[int, int]) -> CallAnswer:
    content = (completion.content or "").strip()
    if not content:
        return CallAnswer(None, "empty", "the answer was empty", "", *tokens)
    return CallAnswer(None, None, None, content, *tokens)
