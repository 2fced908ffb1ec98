"""The front end of a vision-language model: all that is known of it without its weights.

Whoever sends prompts to an engine (sampling, labelling, evaluation, rollouts) and whoever runs the model itself
(``fgaif_ray.vlm.backbone.Backbone``, which holds a front end) make them here, so that both read the same tokens.
How a model family writes an image into its prompt is known in this file alone.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from fgaif_ray.errors import UserError
from fgaif_ray.vlm.checkpoint import load_config_and_processor

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

PROMPT_CACHE: Final = 4096
"""Prompts whose token ids are remembered: a service meets any number of them."""
SHOWN_PROMPT: Final = 60
"""Characters of a prompt in a message."""
WORD_MARKERS: Final = " \t\n\u2581\u0120"
"""White space, and the space marks of sentencepiece and byte-level BPE."""


class FrontEnd:
    """Processor, tokenizer and chat template of a checkpoint.

    A tokenizer is not safe in two threads at once, and neither is this.

    Example: ``load_front_end("llava-hf/llava-1.5-7b-hf").prompt_ids("Describe this image.")``
    """

    def __init__(self, path: str, config: Any, processor: Any) -> None:
        """Takes over what has been loaded.

        Args:
            path: checkpoint folder, or the name of a model that has been downloaded.
            config: the checkpoint's ``LlavaConfig``.
            processor: its ``LlavaProcessor``, with a chat template.
        """
        self.path = path
        self.config = config
        self.processor = processor
        self.tokenizer: Any = processor.tokenizer
        self._image_token_id = int(config.image_token_id)
        self._image_tokens: dict[tuple[int, int], int] = {}
        self._prompt_ids = functools.lru_cache(maxsize=PROMPT_CACHE)(self._tokenise_prompt)

    @property
    def eos_token_id(self) -> int:
        """The token that ends a response."""
        return int(self.tokenizer.eos_token_id)

    @functools.cached_property
    def banned_token_ids(self) -> list[int]:
        """Ids that must never be sampled: they would break the image merge, or stand for no text.

        The image, padding and unknown tokens, and rows of the vocabulary head that no token uses (checkpoints pad
        it); never the EOS token, even where a tokenizer pads with it.
        """
        tokenizer = self.tokenizer
        unused = range(len(tokenizer), int(self.config.text_config.vocab_size))
        banned = {self._image_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id, *unused}
        return sorted(banned - {None, tokenizer.eos_token_id})

    def prompt_text(self, prompt: str) -> str:
        """The chat template with one image, the prompt, and the opening of the answer."""
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return text

    def prompt_ids(self, prompt: str) -> tuple[int, ...]:
        """Token ids of ``prompt_text`` as a vLLM engine takes them beside the image, which it expands itself.

        Raises:
            ValueError: the prompt holds the image token.
        """
        return self._prompt_ids(prompt)

    def expanded_prompt_ids(self, prompt: str, image: "Image") -> list[int]:
        """Token ids of ``prompt_text`` with the image expanded, ``[prompt_tokens]``: what the model reads.

        Raises:
            ValueError: the prompt holds the image token.
        """
        ids = list(self.prompt_ids(prompt))
        place = ids.index(self._image_token_id)
        return ids[:place] + [self._image_token_id] * self._image_token_count(image) + ids[place + 1 :]

    def prompt_length(self, prompt: str) -> int:
        """Tokens that the model reads of a prompt and its image, before the first token of the answer.

        Raises:
            ValueError: the prompt holds the image token.
        """
        return len(self.prompt_ids(prompt)) - 1 + int(self.config.image_seq_length)

    def check_prompt(self, prompt: str, max_model_len: int) -> None:
        """Raises ValueError where an engine of that length cannot answer the prompt."""
        tokens = self.prompt_length(prompt)
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

    def pixel_values(self, images: "Sequence[Image]") -> "Tensor":
        """RGB images as the vision tower wants them, ``[images, channels, height, width]``, float32 on the CPU."""
        values: Tensor = self.processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        return values

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text that ``fgaif_ray.segments.token_offsets`` refers to."""
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def tokens_of(self, word: str) -> dict[int, str]:
        """The tokens that say a word, by id: in any case, with or without a leading space.

        Raises:
            UserError: no single token says it.
        """
        vocabulary: dict[str, int] = self.tokenizer.get_vocab()
        found = {index: token for token, index in vocabulary.items() if token.strip(WORD_MARKERS).casefold() == word}
        if not found:
            raise UserError(f"The vocabulary of label.verifier.model has no token for {word!r}: choose another model.")
        return found

    def _tokenise_prompt(self, prompt: str) -> tuple[int, ...]:
        text = self.prompt_text(prompt)
        # The tokenizer adds its special tokens only where the template has not written the BOS token itself.
        begins = self.tokenizer.bos_token is not None and text.startswith(self.tokenizer.bos_token)
        ids = tuple(self.tokenizer(text, add_special_tokens=not begins)["input_ids"])
        if ids.count(self._image_token_id) != 1:
            token = self.tokenizer.convert_ids_to_tokens(self._image_token_id)
            raise ValueError(f"the prompt holds the image token {token!r}, which would stand for a second image")
        return ids

    def _image_token_count(self, image: "Image") -> int:
        """Image tokens that the processor makes of an image of this size."""
        if image.size not in self._image_tokens:
            from PIL import Image

            blank = Image.new("RGB", image.size)
            encoded = self.processor(images=blank, text=self.processor.image_token)
            self._image_tokens[image.size] = list(encoded["input_ids"][0]).count(self._image_token_id)
        return self._image_tokens[image.size]


def load_front_end(path: str) -> FrontEnd:
    """Load a front end from a folder, or from the local Hugging Face cache; nothing is fetched from the network.

    Args:
        path: checkpoint folder, or the name of one that has been downloaded, e.g. ``llava-hf/llava-1.5-7b-hf``.

    Raises:
        UserError: the checkpoint is not downloaded, not supported or broken.
    """
    config, processor = load_config_and_processor(path)
    return FrontEnd(path, config, processor)
