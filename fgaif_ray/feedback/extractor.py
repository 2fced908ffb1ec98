"""Fact extraction through an OpenAI-compatible endpoint.

One retry layer: the SDK's own retries are off. What belongs to the endpoint (down, wrong key, unknown model,
out of quota, overloaded for long) stops the job with a ``UserError``; what belongs to one response is an
``ExtractionError``, so that this row is rejected and the others go on.
"""

import asyncio
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, Final, cast

import openai
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

from fgaif_ray.errors import UserError
from fgaif_ray.feedback.extraction import (
    ExtractionError,
    Fact,
    Mode,
    build_messages,
    parse_extraction,
    response_format,
    supports,
)
from fgaif_ray.feedback.prompts import Prompt
from fgaif_ray.segments import has_words

FIRST_WAIT_S: Final = 0.5
LONGEST_WAIT_S: Final = 30.0
"""Bound of the drawn back-off; a ``Retry-After`` may ask for more."""
LONGEST_RETRY_AFTER_S: Final = 300.0
"""An endpoint that asks for a longer wait than this is treated as unavailable."""
REPAIR_EXCERPT: Final = 2000
"""Characters of a bad answer that the repair try shows to the model."""

_NO_KEY: Final = "none"  # the SDK wants a key; servers without authentication ignore it
_OVERLOADED: Final = frozenset({429, 502, 503, 504})


@dataclass
class ExtractorUsage:
    """What an extractor has asked of its endpoint; calls count every request that was answered or failed."""

    calls: int = 0
    retries: int = 0
    repairs: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class FactExtractor:
    """Extracts atomic facts with a chat model (FGAIF section 3.2).

    The client is made at the first call, in the process and event loop that call it: an extractor that was
    not used yet can be sent to a worker.

    Example:
        >>> extractor = FactExtractor(url, None, "annotator", load_prompt("extract-v1"))
        >>> await extractor.extract("A dog. It is brown.", ["A dog. ", "It is brown."])
        [[Fact("existence", "There is a dog.")], [Fact("attribute", "The dog is brown.")]]
    """

    def __init__(
        self,
        base_url: str | None,
        api_key: str | None,
        model: str,
        prompt: Prompt,
        *,
        mode: Mode = "segment",
        concurrency: int = 32,
        timeout_s: float = 60,
        max_retries: int = 5,
        max_tokens: int = 512,
        temperature: float | None = 0.0,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        """Check the settings; nothing is called.

        Args:
            base_url: endpoint, up to and with ``/v1``; None is the SDK's default, api.openai.com.
            api_key: bearer token; None for an endpoint without authentication.
            model: model name sent to the endpoint.
            prompt: an extraction prompt that supports the mode.
            mode: one call per sub-sentence (``segment``) or one per response (``response``).
            concurrency: calls in flight, those that wait before a retry among them.
            timeout_s: seconds for one call.
            max_retries: further tries of a call after a failure that may pass.
            max_tokens: limit of one answer.
            temperature: 0 is greedy; None leaves it out, for models that refuse the parameter.
            extra_body: further fields of the request body.

        Raises:
            UserError: the prompt does not support the mode.
        """
        if not supports(prompt, mode):
            raise UserError(
                f"Prompt {prompt.name} cannot be used with mode {mode!r}: "
                "set label.extractor.mode to 'segment' or choose another label.extractor.prompt."
            )
        self.usage = ExtractorUsage()
        self._base_url = base_url
        self._api_key = api_key
        self._model = model
        self._prompt = prompt
        self._mode: Mode = mode
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._options: dict[str, Any] = {
            "model": model,
            "max_completion_tokens": max_tokens,
            "response_format": response_format(mode),
            "extra_body": dict(extra_body or {}),
        }
        if temperature is not None:
            self._options["temperature"] = temperature
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: openai.AsyncOpenAI | None = None
        self._slots: asyncio.Semaphore | None = None

    async def extract(self, response: str, segments: Sequence[str]) -> list[list[Fact]]:
        """Facts of every sub-sentence of a response; one without a word has none and costs no call.

        Args:
            response: the whole response, the context.
            segments: text of every sub-sentence.

        Returns:
            ``[segments]`` lists of facts.

        Raises:
            ExtractionError: this response has no usable facts; reject its row.
            UserError: the endpoint cannot be used; stop.
        """
        wordy = [index for index, segment in enumerate(segments) if has_words(segment)]
        facts: list[list[Fact]] = [[] for _ in segments]
        if not wordy:
            return facts
        if self._mode == "response":
            return await self._ask(build_messages(self._prompt, response, segments, None), len(segments))
        tasks = []
        try:
            async with asyncio.TaskGroup() as group:
                for index in wordy:
                    messages = build_messages(self._prompt, response, segments, index)
                    tasks.append(group.create_task(self._ask(messages, None)))
        except ExceptionGroup as failures:
            # One failed sub-sentence ends the response; the group has cancelled the other calls.
            raise failures.exceptions[0] from failures.exceptions[0].__cause__
        for index, task in zip(wordy, tasks, strict=True):
            (facts[index],) = task.result()
        return facts

    async def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        if self._client is not None:
            await self._client.close()
        self._client = None
        self._slots = None
        self._loop = None

    async def _ask(self, messages: list[dict[str, str]], segment_count: int | None) -> list[list[Fact]]:
        """One question, with one repair try that shows the model its answer and what is wrong with it."""
        answer = await self._complete(messages)
        try:
            return _parse(answer, segment_count)
        except ExtractionError as error:
            self.usage.repairs += 1
            content = (answer.choices[0].message.content or "").strip() if answer.choices else ""
            repair = [
                *messages,
                {"role": "assistant", "content": content[:REPAIR_EXCERPT] or "(no answer)"},
                {
                    "role": "user",
                    "content": f"This cannot be used: {error.detail}. "
                    "Answer the question again, shortly, with the JSON object alone.",
                },
            ]
        return _parse(await self._complete(repair), segment_count)

    async def _complete(self, messages: list[dict[str, str]]) -> ChatCompletion:
        """One chat completion, tried again after failures that may pass."""
        client, slots = self._connection()
        attempt = 0
        async with slots:
            while True:
                self.usage.calls += 1
                try:
                    answer = await client.chat.completions.create(
                        messages=cast("list[ChatCompletionMessageParam]", messages), **self._options
                    )
                except openai.APIError as error:
                    wait = _wait_s(error, attempt)
                    if not _may_pass(error) or attempt == self._max_retries or wait > LONGEST_RETRY_AFTER_S:
                        raise self._failure(error) from error
                    await asyncio.sleep(wait)
                    attempt += 1
                    self.usage.retries += 1
                else:
                    return self._counted(answer)

    def _counted(self, answer: object) -> ChatCompletion:
        # The SDK hands through the text of an answer that is not JSON, such as a web page.
        if not isinstance(answer, ChatCompletion):
            raise UserError(
                f"{self._where} does not answer as an OpenAI-compatible one does: correct "
                "label.extractor.base_url, which usually ends in /v1."
            )
        if answer.usage is not None:
            self.usage.prompt_tokens += answer.usage.prompt_tokens
            self.usage.completion_tokens += answer.usage.completion_tokens
        return answer

    @property
    def _where(self) -> str:
        return f"The extraction endpoint {self._base_url or 'https://api.openai.com/v1'}"

    def _connection(self) -> tuple[openai.AsyncOpenAI, asyncio.Semaphore]:
        """Client and slots of the running event loop: both are bound to the loop that first uses them."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._slots is None or self._loop is not loop:
            self._loop = loop
            self._slots = asyncio.Semaphore(self._concurrency)
            self._client = openai.AsyncOpenAI(
                base_url=self._base_url,
                api_key=self._api_key or _NO_KEY,
                timeout=self._timeout_s,
                max_retries=0,
            )
        return self._client, self._slots

    def _failure(self, error: openai.APIError) -> UserError | ExtractionError:
        """What the error of a call means: the endpoint cannot be used, or this row is rejected."""
        where = self._where
        if isinstance(error, openai.APITimeoutError):
            return ExtractionError("timeout", f"no answer within {self._timeout_s:g} s")
        if isinstance(error, openai.APIConnectionError):
            return UserError(f"{where} cannot be reached: start it or correct label.extractor.base_url.")
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return UserError(
                f"{where} refused the API key (status {error.status_code}): set the environment "
                "variable named by label.extractor.api_key_env to a valid key."
            )
        if isinstance(error, openai.NotFoundError):
            return UserError(
                f"{where} has no model {self._model!r} or no chat completions: correct "
                "label.extractor.model or label.extractor.base_url."
            )
        if _out_of_quota(error):
            return UserError(f"{where} says that the quota is used up: add credit or use another key.")
        if isinstance(error, openai.APIStatusError) and error.status_code in _OVERLOADED:
            return UserError(
                f"{where} stayed overloaded (status {error.status_code}) over {self._max_retries + 1} tries: "
                "lower label.extractor.concurrency or run again later."
            )
        if isinstance(error, openai.APIStatusError) and error.status_code < 500:
            return ExtractionError("rejected", f"the endpoint refused the request ({_excerpt(error)})")
        return ExtractionError("server", f"the endpoint failed on the request ({_excerpt(error)})")


def _parse(answer: ChatCompletion, segment_count: int | None) -> list[list[Fact]]:
    if not answer.choices:
        raise ExtractionError("empty", "the answer was empty")
    choice = answer.choices[0]
    return parse_extraction(
        choice.message.content,
        choice.finish_reason,
        segment_count=segment_count,
        refusal=choice.message.refusal,
    )


def _excerpt(error: openai.APIError) -> str:
    """The endpoint's own words, short enough for a row of rejected responses."""
    return error.message[:300]


def _out_of_quota(error: openai.APIError) -> bool:
    return "insufficient_quota" in (error.code, error.type)


def _may_pass(error: openai.APIError) -> bool:
    if isinstance(error, openai.APIStatusError):
        return (error.status_code in (408, 409, 429) or error.status_code >= 500) and not _out_of_quota(error)
    return isinstance(error, openai.APIConnectionError)  # time-outs among them


def _wait_s(error: openai.APIError, attempt: int) -> float:
    """Seconds before the next try: exponential back-off with full jitter, after what the endpoint asks."""
    drawn = random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt))
    if not isinstance(error, openai.APIStatusError):
        return drawn
    return drawn + (_retry_after_s(error.response.headers.get("retry-after")) or 0.0)


def _retry_after_s(header: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for, as a number or a date; None if it cannot be read."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time()
        except ValueError:
            return None
    return max(seconds, 0.0) if not math.isnan(seconds) else None
