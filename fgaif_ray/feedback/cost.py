"""Estimate of the cost of labelling, before anything is called."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fgaif_ray.calls.tokens import PromptCounter, estimate_completion
from fgaif_ray.config import PriceConfig
from fgaif_ray.feedback.extractor import FactExtractor
from fgaif_ray.segments import ENGLISH, split_segments

KEY_BYTES = 16


@dataclass
class Cost:
    """Calls and tokens of a set of responses in one mode; repair tries and repeated calls come on top."""

    rows: int = 0
    calls: int = 0
    known: int = 0
    """Calls that are not made, because their answers are known or an equal call is made."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Estimate."""

    def money(self, price: PriceConfig) -> float:
        """Price of the calls."""
        return price.cost(self.prompt_tokens, self.completion_tokens)


def estimate_cost(
    extractor: FactExtractor,
    responses: Iterable[str],
    counter: PromptCounter,
    max_tokens: int,
    is_known: Callable[[str], bool],
    language: str = ENGLISH,
) -> Cost:
    """Count the calls that an extractor would make, and their tokens.

    Args:
        extractor: lists the calls of a response and their keys; it calls nothing here.
        responses: texts that are to be labelled.
        counter: counts prompt tokens.
        max_tokens: limit of one answer.
        is_known: whether there is an answer for a key.
        language: of the responses, see ``split_segments``.
    """
    cost = Cost()
    asked: set[bytes] = set()
    for response in responses:
        cost.rows += 1
        segments = [response[span.start : span.end] for span in split_segments(response, language)]
        for question in extractor.questions(response, segments):
            key = extractor.key(question)
            digest = bytes.fromhex(key)[:KEY_BYTES]
            if digest in asked or is_known(key):
                cost.known += 1
                continue
            asked.add(digest)
            cost.calls += 1
            cost.prompt_tokens += counter.count(question.messages)
            cost.completion_tokens += estimate_completion(question.segments, max_tokens, extractor.types)
    return cost
