"""The front end of a vision-language model: all that is known of it without its weights.

Whoever sends prompts to an engine (sampling, labelling, evaluation, rollouts) and whoever runs the model itself
(``fgaif_ray.vlm.backbone.Backbone``, which holds a front end) make them here, so that both read the same tokens.
How a model family writes an image into its prompt is known to its processor alone.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from fgaif_ray.errors import UserError
from fgaif_ray.prompts import messages_of, shown_prompt
from fgaif_ray.vlm.checkpoint import end_token_ids, load_config_and_processor
from fgaif_ray.vlm.inputs import EncodedPrompt

if TYPE_CHECKING:
    from PIL.Image import Image

PROMPT_CACHE: Final = 4096
"""Prompts whose token ids are remembered: a service meets any number of them."""
SHOWN_PROMPT: Final = 60
"""Characters of a prompt in a message."""
SMALLEST_SIDE: Final = 56
"""Pixels; every family's processor takes an image of that size."""
TOKEN_TYPES: Final = "token_type_ids"
"""Names of token types end so."""
WORD_MARKERS: Final = " \t\n\u2581\u0120"
"""White space, and the space marks of sentencepiece and byte-level BPE."""


class FrontEnd:
    """Processor, tokenizer and chat template of a checkpoint.

    A tokenizer is not safe in two threads at once, and neither is this.

    Example: ``load_front_end("Qwen/Qwen2.5-VL-7B-Instruct").prompt_ids("Describe this image.")``
    """

    def __init__(
        self,
        path: str,
        config: Any,
        processor: Any,
        eos_token_ids: Sequence[int] = (),
        template: Mapping[str, Any] | None = None,
    ) -> None:
        """Takes over what has been loaded.

        Args:
            path: checkpoint folder, or the name of a model that has been downloaded.
            config: the checkpoint's configuration.
            processor: its processor, with a chat template.
            eos_token_ids: of its ``generation_config``; the tokenizer's own where there are none.
            template: variables for the chat template.
        """
        self.path = path
        self.config = config
        self.processor = processor
        self.tokenizer: Any = processor.tokenizer
        own = self.tokenizer.eos_token_id
        self.eos_token_ids = tuple(dict.fromkeys([*([] if own is None else [int(own)]), *eos_token_ids]))
        """Tokens that end a response, the tokenizer's own first."""
        self._template = dict(template or {})
        self._image_token_id = int(getattr(config, "image_token_id", None) or processor.image_token_id)
        self._prompt_ids = functools.lru_cache(maxsize=PROMPT_CACHE)(self._tokenise_prompt)

    @property
    def eos_token_id(self) -> int:
        """The token that ends a response, and closes a segment for the reward models."""
        return self.eos_token_ids[0]

    @functools.cached_property
    def banned_token_ids(self) -> list[int]:
        """Ids that must never be sampled: they would break the image merge, or stand for no text.

        All special tokens, the images' among them, and rows of the vocabulary head that no token uses (checkpoints pad
        it); never a token that ends a response.
        """
        unused = range(len(self.tokenizer), int(self.config.get_text_config().vocab_size))
        banned = {self._image_token_id, *self._special_ids, *unused}
        return sorted(banned - set(self.eos_token_ids))

    def prompt_text(self, prompt: str, images: int = 1) -> str:
        """The chat template with the prompt's messages, its images in their places, and the opening of the answer.

        Args:
            prompt: plain text or chat messages, see ``fgaif_ray.prompts``.
            images: how many images are shown with it.

        Raises:
            ValueError: the prompt has places for another number of images, or spells out a special token.
        """
        messages = messages_of(prompt, images)
        for part in (part for message in messages for part in message["content"]):
            if spelled := self._special_tokens.search(part.get("text", "")):
                raise ValueError(
                    f"the prompt holds the special token {spelled.group()!r}, which would not be read as text"
                )
        text: str = self.processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=False,
            processor_kwargs={"return_tensors": "pt"},  # unused; without any, SmolVLM's warns of defaults of its own
            **self._template,
        )
        return text

    def prompt_ids(self, prompt: str, images: int = 1) -> tuple[int, ...]:
        """Token ids of ``prompt_text`` as a vLLM engine takes them beside the images, which it expands itself.

        Raises:
            ValueError: see ``prompt_text``.
        """
        return self._prompt_ids(prompt, images)

    def encode_prompt(self, prompt: str, images: "Sequence[Image]") -> EncodedPrompt:
        """The prompt and its images as the model reads them, made by the checkpoint's own processor.

        Args:
            prompt: plain text or chat messages.
            images: RGB, in the order of their places.

        Raises:
            ValueError: see ``prompt_text``.
        """
        text = self.prompt_text(prompt, len(images))
        encoded = dict(
            self.processor(
                text=[text],
                images=[list(images)] if images else None,
                add_special_tokens=not self._begins_with_bos(text),
                return_tensors="pt",
            )
        )
        ids = encoded.pop("input_ids")[0].tolist()
        encoded.pop("attention_mask", None)
        token_types = {name: encoded.pop(name)[0].tolist() for name in list(encoded) if name.endswith(TOKEN_TYPES)}
        return EncodedPrompt(
            input_ids=tuple(ids),
            token_types={name: tuple(types) for name, types in token_types.items()},
            image_inputs=encoded,
            image_tokens=ids.count(self._image_token_id),
        )

    def check_prompts(self, prompts: Iterable[tuple[str, int]], max_model_len: int) -> None:
        """Look whether an engine of that length can answer prompts about the smallest images.

        What larger images take is known when they are read: a row that does not fit then is rejected by itself.

        Args:
            prompts: each with its number of images.
            max_model_len: of the engine.

        Raises:
            UserError: at the first prompt that it cannot answer.
        """
        from PIL import Image

        smallest = Image.new("RGB", (SMALLEST_SIDE, SMALLEST_SIDE))
        for prompt, images in dict.fromkeys(prompts):
            try:
                tokens = len(self.encode_prompt(prompt, [smallest] * images))
                if tokens >= max_model_len:
                    shown = "its image" if images == 1 else f"its {images} images"
                    raise ValueError(
                        f"the prompt takes {tokens} tokens with {shown}, which leaves none of the engine's "
                        f"{max_model_len} (max_model_len) for an answer"
                    )
            except ValueError as error:
                raise UserError(f"{shown_prompt(prompt)[:SHOWN_PROMPT]!r}... cannot be asked: {error}.") from error

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text that ``fgaif_ray.token_offsets`` refers to."""
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

    def _tokenise_prompt(self, prompt: str, images: int) -> tuple[int, ...]:
        text = self.prompt_text(prompt, images)
        return tuple(self.tokenizer(text, add_special_tokens=not self._begins_with_bos(text))["input_ids"])

    @functools.cached_property
    def _special_tokens(self) -> re.Pattern[str]:
        tokens = {self.processor.image_token, *(self.tokenizer.convert_ids_to_tokens(one) for one in self._special_ids)}
        return re.compile("|".join(re.escape(token) for token in sorted(tokens)))

    @functools.cached_property
    def _special_ids(self) -> set[int]:
        added = self.tokenizer.added_tokens_decoder.items()
        return {*self.tokenizer.all_special_ids, *(index for index, token in added if token.special)}

    def _begins_with_bos(self, text: str) -> bool:
        """Whether the template has written the BOS token, so that the tokenizer must not."""
        return self.tokenizer.bos_token is not None and text.startswith(self.tokenizer.bos_token)


def load_front_end(path: str, template: Mapping[str, Any] | None = None) -> FrontEnd:
    """Load a front end from a folder, or from the local Hugging Face cache; nothing is fetched from the network.

    Args:
        path: checkpoint folder, or the name of one that has been downloaded, e.g. ``llava-hf/llava-1.5-7b-hf``.
        template: variables for the chat template.

    Raises:
        UserError: the checkpoint is not downloaded, not supported or broken.
    """
    config, processor = load_config_and_processor(path)
    return FrontEnd(path, config, processor, end_token_ids(path), template)
