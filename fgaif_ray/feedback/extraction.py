"""Atomic facts of segments: the messages that ask for them, the schema of the answer, and its parsing.

Two modes (FGAIF section 3.2): ``segment`` asks once per segment, ``response`` once for all
segments.
"""

import json
from collections.abc import Sequence
from typing import Any, Final, Literal

from fgaif_ray.calls.unusable import UnusableAnswer
from fgaif_ray.feedback.prompts import Prompt
from fgaif_ray.records import Fact

ExtractionMode = Literal["segment", "response"]
TRAILING_SPACE_LIMIT: Final = 32
"""White-space characters at the end of an answer cut at its limit that show endless white space."""

_encode: Final = json.JSONEncoder(ensure_ascii=False).encode


def response_format(mode: ExtractionMode, types: Sequence[str]) -> dict[str, Any]:
    """Return the ``response_format`` of a chat completion that constrains the answer to the mode's JSON schema."""
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: {"type": "array", "items": {"type": "string"}} for name in types},
        "required": list(types),
        "additionalProperties": False,
    }
    if mode == "response":
        schema = {
            "type": "object",
            "properties": {"segments": {"type": "array", "items": schema}},
            "required": ["segments"],
            "additionalProperties": False,
        }
    return {"type": "json_schema", "json_schema": {"name": "facts", "strict": True, "schema": schema}}


def supports(prompt: Prompt, mode: ExtractionMode) -> bool:
    """Tell whether a prompt asks for facts in this mode: a prompt about one ``{segment}`` cannot ask for all."""
    return "segments_json" in prompt.fields or ("segment" in prompt.fields and mode == "segment")


def build_messages(prompt: Prompt, response: str, segments: Sequence[str], index: int | None) -> list[dict[str, str]]:
    """Build chat messages that ask for the facts of one segment, or of all of them.

    The response and the segments are untrusted text. Prompts for general models take them as JSON
    (``{response_json}``, ``{segments_json}``), so that no text in them can pass for a part of the prompt. Prompts for
    small models take the response up to the end of the segment (``{context}``), so that pronouns stand for what is
    nearest, and of two equal segments ("It is red.") it is clear which one is meant.

    Args:
        prompt: an extraction prompt.
        response: the whole response, the context.
        segments: text of every segment.
        index: the segment to ask about, or None for all in one answer.

    Raises:
        ValueError: the prompt cannot ask about all segments.
    """
    mode: ExtractionMode = "response" if index is None else "segment"
    if not supports(prompt, mode):
        raise ValueError(f"prompt {prompt.name} does not support the mode {mode!r}")
    asked = list(segments) if index is None else [segments[index]]
    fields = {
        "response": response,
        "response_json": _encode(response),
        "segments_json": _encode(asked),
    }
    answer = "Answer with one JSON object: " + json.dumps({name: ["..."] for name in prompt.fact_types})
    if index is None:
        fields["answer_format"] = (
            f'{answer} per sub-sentence, inside {{"segments": [...]}}: {len(asked)} in all, in the order of the list.'
        )
    else:
        fields["answer_format"] = f"{answer}."
        fields["segment"] = segments[index].strip()
        fields["context"] = "".join(segments[: index + 1]).strip()
    user = {"role": "user", "content": prompt.render(**fields)}
    return [user] if prompt.system is None else [{"role": "system", "content": prompt.system}, user]


def parse_extraction(
    text: str | None,
    finish_reason: str | None,
    *,
    segment_count: int | None = None,
    refusal: str | None = None,
    types: Sequence[str],
) -> list[list[Fact]]:
    """Parse the facts of an answer, per segment; blank and repeated facts are left out.

    Args:
        text: content of the answer.
        finish_reason: why the model stopped, as the endpoint says it.
        segment_count: number of segments asked about in ``response`` mode; None in ``segment`` mode.
        refusal: the model's refusal, where the endpoint has a field for it.
        types: the fact types that were asked for.

    Returns:
        ``[segments]`` lists of facts in the order of their types; one list in ``segment`` mode.

    Raises:
        UnusableAnswer: the answer is a refusal, empty, cut at its token limit, malformed or of another
        shape.
    """
    if refusal is not None or finish_reason == "content_filter":
        raise UnusableAnswer("refusal", refusal or "the endpoint's content filter withheld the answer")
    content = text or ""
    if finish_reason == "length":
        trailing = len(content) - len(content.rstrip())
        if trailing >= TRAILING_SPACE_LIMIT:
            raise UnusableAnswer("white_space", "the answer ran into endless white space")
        raise UnusableAnswer("length", "the answer was cut at its token limit")
    if not content.strip():
        raise UnusableAnswer("empty", "the answer was empty")
    try:
        answer = json.loads(content)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UnusableAnswer("malformed", f"the answer is not JSON ({error})") from error
    if segment_count is None:
        return [_facts(answer, "the answer", types)]
    segments = answer.get("segments") if isinstance(answer, dict) else None
    if not isinstance(segments, list) or len(segments) != segment_count:
        raise UnusableAnswer("shape", f'the answer needs a list "segments" of exactly {segment_count} objects')
    return [_facts(segment, f"segment {number}", types) for number, segment in enumerate(segments, start=1)]


def _facts(answer: object, where: str, types: Sequence[str]) -> list[Fact]:
    if not isinstance(answer, dict) or answer.keys() != set(types):
        raise UnusableAnswer("shape", f"{where} needs to be an object with the keys {', '.join(types)}")
    facts: dict[Fact, None] = {}  # ordered, without repetitions
    for fact_type in types:
        texts = answer[fact_type]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UnusableAnswer("shape", f'"{fact_type}" of {where} needs to be a list of strings')
        facts.update(dict.fromkeys(Fact(fact_type, _valid(text)) for text in texts if text.strip()))
    return list(facts)


def _valid(text: str) -> str:
    """Return text that any file can hold, since JSON may spell half a surrogate pair."""
    return text.strip().encode(errors="replace").decode()
