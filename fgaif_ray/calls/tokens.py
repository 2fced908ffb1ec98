"""Token counts of a call, before it is made."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

CHARACTERS_PER_TOKEN: Final = 4
"""Characters per token of English text, for estimates without a tokenizer."""
MESSAGE_TOKENS: Final = 4
"""Estimated tokens of role and separators of one chat message."""
ANSWER_CHARACTERS_PER_CHARACTER: Final = 3
"""Facts repeat the words of their segment in whole sentences, one or two per word of weight."""

Messages = Sequence[dict[str, str]]


@dataclass(frozen=True, slots=True)
class CallSize:
    """The tokens of a call that has not been made yet."""

    prompt_tokens: int
    completion_tokens: int
    """Tokens that the answer will probably take."""
    max_completion_tokens: int
    """Tokens that the answer can take at most."""


def estimate_tokens(text: str) -> int:
    """Estimate the tokens of a text by its length: characters / 4, rounded up."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def estimate_prompt(messages: Messages) -> int:
    """Estimate the prompt tokens of a chat by its length."""
    return sum(MESSAGE_TOKENS + estimate_tokens(message["content"]) for message in messages)


def estimate_completion(segments: Sequence[str], max_tokens: int, types: Sequence[str]) -> int:
    """Estimate the completion tokens of an answer with the facts of these segments, for any model."""
    frame = len(json.dumps({name: [] for name in types})) + 2  # of a segment, with what parts it from the next
    characters = sum(frame + ANSWER_CHARACTERS_PER_CHARACTER * len(segment.strip()) for segment in segments)
    return min(max_tokens, -(-characters // CHARACTERS_PER_TOKEN))


class PromptCounter:
    """Counter of the prompt tokens of chats, by a model's own tokenizer or estimated by length.

    Example: ``PromptCounter("llava-hf/llava-1.5-7b-hf").count([{"role": "user", "content": "Hello."}])``
    """

    def __init__(self, model: str) -> None:
        """Look for the model's tokenizer on this machine; nothing is downloaded.

        Args:
            model: local folder, or a name whose files have been downloaded before.
        """
        self._tokenizer = _local_tokenizer(model)
        self._overhead: dict[tuple[str, ...], int] = {}
        self.how = (
            f"counted by the tokenizer of {model}" if self._tokenizer is not None else "estimated as characters / 4"
        )

    def count(self, messages: Messages) -> int:
        """Count the prompt tokens of one chat."""
        if self._tokenizer is None:
            return estimate_prompt(messages)
        roles = tuple(message["role"] for message in messages)
        if roles not in self._overhead:
            self._overhead[roles] = self._frame(roles)
        return self._overhead[roles] + sum(self._length(message["content"]) for message in messages)

    def _length(self, text: str) -> int:
        assert self._tokenizer is not None
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _frame(self, roles: tuple[str, ...]) -> int:
        """Count the tokens that the chat template puts around messages of these roles."""
        assert self._tokenizer is not None
        if self._tokenizer.chat_template is None:
            return MESSAGE_TOKENS * len(roles)
        messages = [{"role": role, "content": "x"} for role in roles]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self._length(text) - len(roles) * self._length("x")


def _local_tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError):
        return None
