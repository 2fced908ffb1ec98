"""Fact extraction through an OpenAI-compatible endpoint.

One retry layer: the SDK's own retries are off. What belongs to the endpoint (down, wrong key, unknown model,
out of quota, overloaded for long) stops the job with a ``UserError``; what belongs to one response is an
``ExtractionError``, so that this row is rejected and the others go on. A call that is under way is always waited for,
since it is paid: its answer is kept whatever has become of its response.
"""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import openai
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

from fgaif_ray.errors import UserError
from fgaif_ray.feedback.answers import Answer, call_key
from fgaif_ray.feedback.calls import Call, Calls, FreeCalls
from fgaif_ray.feedback.endpoint_errors import endpoint_failure, failure_reason, may_be_billed, may_pass, retry_after_s
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
from fgaif_ray.feedback.tokens import CallSize, estimate_completion, estimate_prompt
from fgaif_ray.segments import has_words

FIRST_WAIT_S: Final = 0.5
LONGEST_WAIT_S: Final = 30.0
"""Bound of the drawn back-off; a ``Retry-After`` may ask for more."""
LONGEST_RETRY_AFTER_S: Final = 300.0
"""An endpoint that asks for a longer wait than this is treated as unavailable."""
CHECK_S: Final = 1.0
"""Between two looks at whether to stop, in a back-off."""
REPAIR_EXCERPT: Final = 2000
"""Characters of a bad answer that the repair try shows to the model."""

_NO_KEY: Final = "none"  # the SDK wants a key; servers without authentication ignore it
_PAUSING: Final = frozenset({429, 503})
"""With ``Retry-After`` they speak to everybody who calls."""


@dataclass
class ExtractorUsage:
    """What an extractor has asked of its endpoint; calls count every request that was answered or failed.

    Of this extractor alone, in this process: the account of a run is its ledger.
    """

    calls: int = 0
    retries: int = 0
    repairs: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """What one call asks.

    Example: ``Question([{"role": "user", "content": "..."}], ["A dog. "], None)``
    """

    messages: list[dict[str, str]]
    segments: Sequence[str]
    """The sub-sentences asked about."""
    segment_count: int | None
    """Of ``response`` mode; None in ``segment`` mode."""
    is_repair: bool = False

    def repair(self, answer: Answer) -> "Question":
        """The question again, with an answer that cannot be used and what is wrong with it."""
        shown = {"role": "assistant", "content": answer.content or "(no answer)"}
        complaint = {
            "role": "user",
            "content": f"This cannot be used: {answer.detail}. "
            "Answer the question again, shortly, with the JSON object alone.",
        }
        return Question([*self.messages, shown, complaint], self.segments, self.segment_count, is_repair=True)


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
        calls: Calls | None = None,
        identity: str | None = None,
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
            calls: known answers, limits and account; None calls freely.
            identity: what stands for the model in the keys of answers; None takes its name.

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
        self._identity = model if identity is None else identity
        self._calls: Calls = FreeCalls() if calls is None else calls
        self._mode: Mode = mode
        self._max_tokens = max_tokens
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
        self._stopped: UserError | None = None

    def questions(self, response: str, segments: Sequence[str]) -> list[Question]:
        """The calls that a response takes, without repair tries; a sub-sentence without a word takes none."""
        wordy = [index for index, segment in enumerate(segments) if has_words(segment)]
        if self._mode == "segment":
            return [
                Question(build_messages(self._prompt, response, segments, index), [segments[index]], None)
                for index in wordy
            ]
        if not wordy:
            return []
        return [Question(build_messages(self._prompt, response, segments, None), segments, len(segments))]

    def key(self, question: Question) -> str:
        """The content address of a call: sha256 over everything that its answer depends on."""
        options = {name: value for name, value in self._options.items() if name != "model"}
        prompt = [self._prompt.name, self._prompt.system, self._prompt.user]
        return call_key(
            model=self._identity, prompt=prompt, mode=self._mode, options=options, messages=question.messages
        )

    def size(self, question: Question) -> CallSize:
        """Tokens of a call, estimated from its characters."""
        return CallSize(
            estimate_prompt(question.messages),
            estimate_completion(question.segments, self._max_tokens),
            self._max_tokens,
        )

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
        questions = self.questions(response, segments)
        failures: list[ExtractionError] = []
        results = await asyncio.gather(
            *(self._ask(question, failures) for question in questions), return_exceptions=True
        )
        errors = [result for result in results if isinstance(result, BaseException)]
        if errors:
            # What stops the job comes before what rejects the row, and a fault of ours before both.
            raise min(errors, key=lambda error: (isinstance(error, ExtractionError), isinstance(error, UserError)))
        answers = [cast("list[list[Fact]]", result) for result in results]
        if self._mode == "response" and answers:
            return answers[0]
        found = iter(answers)
        return [next(found)[0] if has_words(segment) else [] for segment in segments]

    async def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        if self._client is not None:
            await self._client.close()
        self._client = None
        self._slots = None
        self._loop = None
        self._stopped = None

    async def _ask(self, question: Question, failures: list[ExtractionError]) -> list[list[Fact]]:
        """One question, with one repair try that shows the model its answer and what is wrong with it."""
        try:
            answer = await self._answer(question, failures)
            if answer.facts is None:
                answer = await self._answer(question.repair(answer), failures)
            if answer.facts is None:
                raise answer.error()
        except ExtractionError as error:
            failures.append(error)
            raise
        return answer.facts

    async def _answer(self, question: Question, failures: Sequence[ExtractionError]) -> Answer:
        """The answer to a question: a known one, or that of a call."""
        key = self.key(question)
        known = await self._calls.find(key)
        if known is not None:
            return known
        try:
            answer = await self._call(question, failures)
        except BaseException:
            self._calls.release(key)
            raise
        self._calls.keep(key, answer)
        return answer

    async def _call(self, question: Question, failures: Sequence[ExtractionError]) -> Answer:
        """One chat completion, tried again after failures that may pass."""
        client, slots = self._connection()
        messages = cast("list[ChatCompletionMessageParam]", question.messages)
        size = self.size(question)
        self._check(failures)
        async with slots:
            for attempt in range(self._max_retries + 1):
                self._check(failures)
                try:
                    call = await self._calls.enter(size, retry=attempt > 0, repair=question.is_repair)
                except UserError as error:
                    raise self._stop(error) from None
                self.usage.calls += 1
                self.usage.retries += attempt > 0
                self.usage.repairs += question.is_repair and attempt == 0
                try:
                    completion = await client.chat.completions.create(messages=messages, **self._options)
                except openai.APIError as error:
                    self._calls.failed(call, failure_reason(error), may_be_billed=may_be_billed(error))
                    asked_for = retry_after_s(error)
                    if not may_pass(error) or attempt == self._max_retries or asked_for > LONGEST_RETRY_AFTER_S:
                        raise self._failure(error) from error
                    if asked_for and isinstance(error, openai.APIStatusError) and error.status_code in _PAUSING:
                        self._calls.pause(asked_for)
                    # Exponential back-off with full jitter, after what the endpoint asks for.
                    drawn = random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt))
                    await self._rest(asked_for + drawn, failures)
                except BaseException:
                    self._calls.failed(call, "cancelled", may_be_billed=True)
                    raise
                else:
                    return self._read(call, completion, question)
        raise AssertionError("unreachable: the last try returns or raises")

    async def _rest(self, seconds: float, failures: Sequence[ExtractionError]) -> None:
        """Wait before the next try, as long as it makes sense."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._check(failures)
            await asyncio.sleep(min(left, CHECK_S))

    def _stop(self, error: UserError) -> UserError:
        """Make no more calls, here and elsewhere; returns the first reason."""
        self._stopped = self._stopped or error
        self._calls.stop(str(self._stopped))
        return self._stopped

    def _check(self, failures: Sequence[ExtractionError]) -> None:
        """Spend nothing on a response that is rejected, or after the endpoint has turned out to be unusable."""
        if self._stopped is not None:
            raise self._stopped
        if failures:
            raise failures[0]

    def _read(self, call: Call, completion: object, question: Question) -> Answer:
        # The SDK hands through the text of an answer that is not JSON, such as a web page.
        if not isinstance(completion, ChatCompletion):
            self._calls.failed(call, "no completion", may_be_billed=False)
            raise self._stop(
                UserError(
                    f"{self._where} does not answer as an OpenAI-compatible one does: correct "
                    "label.extractor.base_url, which usually ends in /v1."
                )
            )
        tokens = None
        if completion.usage is not None:
            tokens = (completion.usage.prompt_tokens, completion.usage.completion_tokens)
            self.usage.prompt_tokens += tokens[0]
            self.usage.completion_tokens += tokens[1]
        used = tokens or (call.size.prompt_tokens, call.size.completion_tokens)
        try:
            answer = Answer(_parse(completion, question.segment_count), None, None, "", *used)
        except ExtractionError as error:
            content = (completion.choices[0].message.content or "").strip() if completion.choices else ""
            answer = Answer(None, error.reason, error.detail, content[:REPAIR_EXCERPT], *used)
        self._calls.answered(call, tokens, answer.reason)
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
        failure = endpoint_failure(
            error, self._where, self._model, tries=self._max_retries + 1, timeout_s=self._timeout_s
        )
        return self._stop(failure) if isinstance(failure, UserError) else failure


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
