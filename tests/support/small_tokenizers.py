"""Small tokenizers that decode as those of published models do, and any ids of theirs."""

from functools import cache

from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TRAINING_TEXT = [
    "The cat sits on the mat. The dog is red.\n\nThere is a tree. No people are here.",
    "A small blue circle, left of the big red square; the café is closed! 你好。世界 😀😃 naïve",
] * 20


@cache
def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer whose merges cross sentence borders (". The", ".\\n\\n")."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    tokenizer.add_tokens([". The", ".\n\n", ".No"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@cache
def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that decodes as Llama's does: word markers, single bytes as fallback, one leading space
    stripped."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁The", "▁cat", "s", ".", "▁A", "a", "é", "\ufffd", ".\n", "▁▁"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@cache
def word_piece_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that puts spaces between words when it decodes."""
    pieces = [
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "the",
        "cat",
        "##s",
        "sit",
        ".",
        ",",
        "'",
        "n't",
        "do",
        "##ing",
        "é",
        "你",
    ]
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


TOKENIZERS = [byte_level_tokenizer, byte_fallback_tokenizer, word_piece_tokenizer]


def decoded(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def to_ids(tokenizer: PreTrainedTokenizerFast, tokens: list[str]) -> list[int]:
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[token] for token in tokens]


def ids_of(tokenizer: PreTrainedTokenizerFast) -> st.SearchStrategy[list[int]]:
    """Any ids at all, or ids of whole characters that no encoder would choose for their text."""
    any_id = st.integers(0, len(tokenizer) - 1)
    characters = st.text(min_size=1, max_size=3).map(lambda text: text.encode("utf-8", "ignore").decode())
    whole = st.lists(characters, max_size=15).map(
        lambda parts: [index for part in parts for index in tokenizer.encode(part, add_special_tokens=False)]
    )
    return st.lists(any_id, max_size=40) | whole
