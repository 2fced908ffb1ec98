"""Fact extraction through an OpenAI-compatible endpoint: questions, and parsing of the answers.

``chat_caller.py`` makes, retries and accounts for the calls.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

from fgaif_ray.calls.answers import CallAnswer, CallKeys, model_identity
from fgaif_ray.calls.calls import Calls
from fgaif_ray.calls.chat_caller import CallUsage, Chat, ChatCaller
from fgaif_ray.calls.chat_connection import Completion
from fgaif_ray.calls.tokens import CallSize, estimate_completion, estimate_prompt
from fgaif_ray.calls.unusable import UnusableAnswer
from fgaif_ray.config import ExtractorConfig
from fgaif_ray.errors import UserError
from fgaif_ray.feedback.extraction import build_messages, parse_extraction, response_format, supports
from fgaif_ray.feedback.prompts import Prompt
from fgaif_ray.feedback.writing import is_foreign
from fgaif_ray.records import Fact
from fgaif_ray.segments import has_words

REPAIR_EXCERPT: Final = 2000
"""Characters of a bad answer that the repair try shows to the model."""


@dataclass(frozen=True, slots=True)
class ExtractionQuestion:
    """The question of one call.

    Example: ``ExtractionQuestion([{"role": "user", "content": "..."}], ["A dog. "], None)``
    """

    messages: list[dict[str, str]]
    segments: Sequence[str]
    """The segments asked about."""
    segment_count: int | None
    """Number of segments in ``response`` mode; None in ``segment`` mode."""
    response: str = ""
    """The response that they are segments of."""
    is_repair: bool = False

    def repair(self, answer: CallAnswer) -> "ExtractionQuestion":
        """Repeat the question with an unusable answer and what is wrong with it."""
        shown = {"role": "assistant", "content": answer.content or "(no answer)"}
        complaint = {
            "role": "user",
            "content": f"This cannot be used: {answer.detail}. "
            "Answer the question again, shortly, with the JSON object alone.",
        }
        messages = [*self.messages, shown, complaint]
        return ExtractionQuestion(messages, self.segments, self.segment_count, self.response, is_repair=True)


class FactExtractor:
    """Extractor of atomic facts with a chat model (FGAIF section 3.2).

    The client is made at the first call, in the process and event loop that call it: so an unused
    extractor can be sent to a worker.

    Example:
        >>> extractor = FactExtractor(config, load_prompt("extract-v1", DEFAULT), url, None)
        >>> await extractor.extract("A dog. It is brown.", ["A dog. ", "It is brown."])
        [[Fact("existence", "There is a dog.")], [Fact("attribute", "The dog is brown.")]]
    """

    def __init__(
        self,
        config: ExtractorConfig,
        prompt: Prompt,
        base_url: str | None,
        api_key: str | None,
        calls: Calls | None = None,
        identity: str | None = None,
    ) -> None:
        """Check the settings without calling anything.

        Args:
            config: the settings.
            prompt: an extraction prompt that supports the mode.
            base_url: endpoint, up to and with ``/v1``; None is the SDK's default, api.openai.com.
            api_key: bearer token; None for an endpoint without authentication.
            calls: known answers, limits and account; None calls freely.
            identity: of the model in the keys of answers, see ``model_identity``; None finds it out.

        Raises:
            UserError: the prompt does not support the mode.
        """
        if not supports(prompt, config.mode):
            raise UserError(
                f"Prompt {prompt.name} cannot be used with mode {config.mode!r}: "
                "set label.extractor.mode to 'segment' or choose another label.extractor.prompt."
            )
        self._prompt = prompt
        self._mode = config.mode
        self._max_tokens = config.max_tokens
        options = {
            "max_completion_tokens": config.max_tokens,
            "response_format": response_format(config.mode, prompt.fact_types),
            "temperature": 0.0,
        }
        self._keys = CallKeys(
            model=model_identity(config.model, config.serve_model) if identity is None else identity,
            prompt=[prompt.name, prompt.system, prompt.user],
            mode=config.mode,
            options={**options, "extra_body": {}},  # which stands in the keys of answers that have been paid
        )
        self._caller = ChatCaller(config, base_url, api_key, options, calls)

    @property
    def types(self) -> tuple[str, ...]:
        """The fact types that are asked for."""
        return self._prompt.fact_types

    @property
    def usage(self) -> CallUsage:
        """Return counts of the requests so far."""
        return self._caller.usage

    def questions(self, response: str, segments: Sequence[str]) -> list[ExtractionQuestion]:
        """List the calls of a response, without repair tries; a segment without a word takes none."""
        return [self._question(response, segments, index) for index in self._asked(segments)]

    def _asked(self, segments: Sequence[str]) -> list[int | None]:
        """List the indices of the segments to ask about; None means all in one call."""
        wordy = [index for index, segment in enumerate(segments) if has_words(segment)]
        if self._mode == "segment":
            return list(wordy)
        return [None] if wordy else []

    def _question(self, response: str, segments: Sequence[str], index: int | None) -> ExtractionQuestion:
        messages = build_messages(self._prompt, response, segments, index)
        if index is None:
            return ExtractionQuestion(messages, segments, len(segments), response)
        return ExtractionQuestion(messages, [segments[index]], None, response)

    def key(self, question: ExtractionQuestion) -> str:
        """Return the content address of a call: sha256 over everything that its answer depends on."""
        return self._keys(question.messages)

    def size(self, question: ExtractionQuestion) -> CallSize:
        """Estimate the tokens of a call from its characters."""
        return CallSize(
            estimate_prompt(question.messages),
            estimate_completion(question.segments, self._max_tokens, self._prompt.fact_types),
            self._max_tokens,
        )

    async def extract(self, response: str, segments: Sequence[str]) -> list[list[Fact]]:
        """Extract the facts of every segment of a response; a segment without a word has none and takes no call.

        Args:
            response: the whole response, the context.
            segments: text of every segment.

        Returns:
            ``[segments]`` lists of facts.

        Raises:
            UnusableAnswer: this response has no usable facts; reject its row.
            UserError: the endpoint cannot be used; stop.
        """
        asked = self._asked(segments)
        failures: list[UnusableAnswer] = []
        results = await asyncio.gather(
            *(self._ask(response, segments, index, failures) for index in asked), return_exceptions=True
        )
        errors = [result for result in results if isinstance(result, BaseException)]
        if errors:
            # An error that stops the job comes before one that rejects the row, and an error of our own before both.
            raise min(errors, key=lambda error: (isinstance(error, UnusableAnswer), isinstance(error, UserError)))
        answers = [cast("list[list[Fact]]", result) for result in results]
        if self._mode == "response" and answers:
            return answers[0]
        found = {index: facts for index, (facts,) in zip(asked, answers, strict=True)}
        return [found.get(index, []) for index in range(len(segments))]

    async def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        await self._caller.close()

    async def _ask(
        self, response: str, segments: Sequence[str], index: int | None, failures: list[UnusableAnswer]
    ) -> list[list[Fact]]:
        """Ask one question, with one repair try that shows the model its answer and what is wrong with it."""
        try:
            async with self._caller.ahead:
                question = self._question(response, segments, index)
                answer = await self._answer(question, failures)
                if answer.facts is None:
                    answer = await self._answer(question.repair(answer), failures)
            if answer.facts is None:
                raise answer.error()
        except UnusableAnswer as error:
            failures.append(error)
            raise
        return answer.facts

    async def _answer(self, question: ExtractionQuestion, failures: Sequence[UnusableAnswer]) -> CallAnswer:
        """Return the answer to a question: a known one, or that of a call."""

        def read(completion: Completion, tokens: tuple[int, int]) -> CallAnswer:
            try:
                return CallAnswer(_parse(completion, question, self._prompt.fact_types), None, None, "", *tokens)
            except UnusableAnswer as error:
                content = (completion.content or "").strip()
                return CallAnswer(None, error.reason, error.detail, content[:REPAIR_EXCERPT], *tokens)

        chat = Chat(question.messages, self.key(question), self.size(question), read, question.is_repair)
        return await self._caller.answer(chat, failures)


def _parse(completion: Completion, question: ExtractionQuestion, types: Sequence[str]) -> list[list[Fact]]:
    facts = parse_extraction(
        completion.content,
        completion.finish_reason,
        segment_count=question.segment_count,
        refusal=completion.refusal,
        types=types,
    )
    if is_foreign(" ".join(fact.text for segment in facts for fact in segment), question.response):
        raise UnusableAnswer("language", "the facts are in another language than the description")
    return facts
