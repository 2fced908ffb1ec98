"""Tiny byte-level tokenizers with the special tokens of a family."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LEARNED_TOKENS: Final = 150
"""Merges beside the 256 bytes and the special tokens."""
PADDING_ROWS: Final = 4
"""Rows of the vocabulary head that no token uses: published checkpoints pad it, too."""
CORPUS: Final = (
    "Describe this image in detail.",
    "What can you see in this picture?",
    "A red circle is to the left of a blue square.",
    "There is a small green triangle above a big yellow ball.",
    "yes no Yes No yes no Yes No",
    "yes\nno\nYes\nNo\nyes\nno\nYes\nNo",
    "user assistant system You are a helpful assistant.",
    "The cat sits on the mat, next to a dog. The sky is blue.",
)


def train_tokenizer(
    special: Sequence[str],
    *,
    eos: str,
    pad: str,
    bos: str | None = None,
    unk: str | None = None,
    adds_bos: bool = False,
    roles: Mapping[str, str] | None = None,
) -> PreTrainedTokenizerFast:
    """Train a tokenizer that can write any text.

    Args:
        special: special tokens; they get the first ids, in this order.
        eos: which of them ends a text; `pad`, `bos` and `unk` likewise.
        adds_bos: the tokenizer itself puts the BOS token first, as Llama's, Mistral's and Gemma's do.
        roles: further attributes of the tokenizer that processors read, e.g. ``{"image_token": "<image>"}``.
    """
    bytes_ = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + len(bytes_) + LEARNED_TOKENS,
        special_tokens=list(special),
        initial_alphabet=bytes_,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    if adds_bos and bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    options: dict[str, Any] = {"extra_special_tokens": dict(roles)} if roles else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        unk_token=unk,
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
        **options,
    )


def vocabulary_settings(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The tokenizer's part of a text configuration."""
    return {
        "vocab_size": len(tokenizer) + PADDING_ROWS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def id_of(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of a token that the tokenizer has."""
    index: int = tokenizer.get_vocab()[token]
    return index
