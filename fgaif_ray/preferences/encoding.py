"""Preference pairs as token ids: those that were sampled, never a re-tokenised text, where they are known."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fgaif_ray.preferences.pair import Continuation, Form, PreferencePair
from fgaif_ray.records import Response
from fgaif_ray.segments import Span, segment_token_ends
from fgaif_ray.token_offsets import token_offsets
from fgaif_ray.vlm.front_end import FrontEnd

NO_TOKENS: Final = "it has no token of its own"


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A pair as a policy reads it.

    Example: ``EncodedPair(("dog.png",), "What is it?", (7, 8), (9, 2), (10, 11, 2))``
    """

    images: tuple[str, ...]
    """Paths or URIs."""
    prompt: str
    context: tuple[int, ...]
    """``[context_tokens]`` that both follow; they are not learnt."""
    chosen: tuple[int, ...]
    """``[chosen_tokens]``, at least one."""
    rejected: tuple[int, ...]
    """``[rejected_tokens]``, at least one."""

    def __len__(self) -> int:
        return len(self.context) + max(len(self.chosen), len(self.rejected))


def encode_pairs(pairs: Sequence[PreferencePair], front_end: FrontEnd) -> tuple[list[EncodedPair], list[str]]:
    """Encode pairs, in order.

    Of whole responses the token that ends them is learnt too. A segment ends with its last word or mark, whatever
    follows: whether a response goes on is not part of what is compared. Both of a pair follow the context as it was
    sampled for the rejected one.

    Args:
        pairs: to encode.
        front_end: of the policy.

    Returns:
        The encoded pairs, and of each that cannot be learnt from the reason.
    """
    encoded, reasons = [], []
    for pair in pairs:
        try:
            (_, chosen), (context, rejected) = (
                _tokens(one, pair.form, front_end) for one in (pair.chosen, pair.rejected)
            )
        except ValueError as error:
            reasons.append(f"{', '.join(pair.images)}: {error}")
        else:
            encoded.append(EncodedPair(pair.images, pair.prompt, context, chosen, rejected))
    return encoded, reasons


def _tokens(one: Continuation, form: Form, front_end: FrontEnd) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids of the context, and of the continuation.

    Raises:
        ValueError: it cannot be learnt.
    """
    response = one.response
    ids = _tokenised(response, front_end) if response.token_ids is None else response.token_ids
    if not {*ids}.isdisjoint(front_end.banned_token_ids):
        raise ValueError("it holds a special token")
    if form == "response":
        if not ids:
            raise ValueError(NO_TOKENS)
        return (), ids
    spans = [Span(one.start, one.end)] if one.start == 0 else [Span(0, one.start), Span(one.start, one.end)]
    *before, last = segment_token_ends(spans, token_offsets(front_end.tokenizer, ids), response.text)
    first = before[0] + 1 if before else 0
    if last < first:
        raise ValueError(NO_TOKENS)
    return ids[:first], ids[first : last + 1]


def _tokenised(response: Response, front_end: FrontEnd) -> tuple[int, ...]:
    """Ids of a provided response, with the token that ends it.

    Raises:
        ValueError: they stand for another text.
    """
    ids = [*front_end.tokenizer(response.text, add_special_tokens=False)["input_ids"], front_end.eos_token_id]
    if front_end.decode(ids) != response.text:
        raise ValueError("the policy's tokenizer does not keep the provided response as it is")
    return tuple(ids)
