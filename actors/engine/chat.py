"""Prompts with one image, as the token ids that a vLLM engine takes, without loading the model's weights."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, Final

from fgaif_ray.errors import UserError
from fgaif_ray.vlm.checkpoint import load_config_and_processor

SHOWN_PROMPT: Final = 60
"""Characters of a prompt in a message."""
WORD_MARKERS: Final = " \t\n\u2581\u0120"
"""White space, and the space marks of sentencepiece and byte-level BPE."""


class ImageChat:
    """Processor and tokenizer of a LLaVA-family model; agrees with ``fgaif_ray.vlm.backbone.Backbone``.

    Args:
        model: checkpoint folder, or the name of a model that has been downloaded.

    Raises:
        UserError: the checkpoint is not downloaded, not supported or broken.
    """

    def __init__(self, model: str) -> None:
        config, self._processor = load_config_and_processor(model)
        self._tokenizer: Any = self._processor.tokenizer
        self._image_token_id = int(config.image_token_id)
        self.image_tokens = int(config.image_seq_length)
        """Tokens that the image token is expanded to."""
        self._vocabulary_rows = int(config.text_config.vocab_size)
        self.token_ids = functools.lru_cache(maxsize=1 << 16)(self._token_ids)

    def _token_ids(self, prompt: str) -> tuple[int, ...]:
        """Ids of a user turn with the image, as ONE token, before the prompt, and of the opening of the answer.

        Raises:
            ValueError: the prompt holds the image token, which would stand for a second image.
        """
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        begins = self._tokenizer.bos_token is not None and text.startswith(self._tokenizer.bos_token)
        ids = tuple(self._tokenizer(text, add_special_tokens=not begins)["input_ids"])
        if ids.count(self._image_token_id) != 1:
            raise ValueError("the prompt holds the image token, which would stand for a second image")
        return ids

    def check_prompt(self, prompt: str, max_model_len: int) -> None:
        """Raises ValueError where an engine of that length cannot answer the prompt."""
        tokens = len(self.token_ids(prompt)) - 1 + self.image_tokens
        if tokens >= max_model_len:
            raise ValueError(
                f"the prompt takes {tokens} tokens with its image, which leaves none of the engine's {max_model_len} "
                "(max_model_len) for an answer"
            )

    def check_prompts(self, prompts: Iterable[str], max_model_len: int) -> None:
        """Raises UserError at the first prompt that an engine of that length cannot answer."""
        for prompt in dict.fromkeys(prompts):
            try:
                self.check_prompt(prompt, max_model_len)
            except ValueError as error:
                raise UserError(f"{prompt[:SHOWN_PROMPT]!r}... cannot be asked: {error}.") from error

    @functools.cached_property
    def banned(self) -> list[int]:
        """Ids that must never be sampled: image, padding and unknown tokens, and rows that no token uses."""
        tokenizer = self._tokenizer
        unused = range(len(tokenizer), self._vocabulary_rows)
        banned = {self._image_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id, *unused}
        return sorted(banned - {None, tokenizer.eos_token_id})

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text that ``fgaif_ray.segments.token_offsets`` refers to."""
        text: str = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def tokens_of(self, word: str) -> dict[int, str]:
        """The tokens that say a word, by id: in any case, with or without a leading space.

        Raises:
            UserError: no single token says it.
        """
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        found = {index: token for token, index in vocabulary.items() if token.strip(WORD_MARKERS).casefold() == word}
        if not found:
            raise UserError(f"The vocabulary of label.verifier.model has no token for {word!r}: choose another model.")
        return found
