"""Tiny checkpoints of many families, of the size that the tests have or wider.

They are built by `tests/support/families`: benchmarks run from the repository.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

TESTS: Final = Path(__file__).resolve().parent.parent / "tests"
HEAD_SIZE: Final = 32

if TYPE_CHECKING:
    from support.families import Family


def families() -> "Mapping[str, Family]":
    """All that can be built, by name."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    from support.families import FAMILIES

    return FAMILIES


def build_family(name: str, folder: Path) -> str:
    """Write the checkpoint that the tests use; returns its path."""
    families()
    from support.families import build

    return str(build(name, folder))


def build_wide_family(name: str, folder: Path, hidden: int, layers: int, seed: int = 0) -> str:
    """Write a checkpoint whose decoder is wider and deeper than the tests', so that it computes more than it calls.

    Args:
        name: key of ``families()``.
        folder: where to; it may be missing.
        hidden: width of the decoder's states, a multiple of ``HEAD_SIZE``.
        layers: of the decoder, even.
        seed: of the weights.

    Returns:
        The checkpoint's path.
    """
    import torch

    family = families()[name]
    from support.families.family import Draft
    from support.families.published import write_checkpoint
    from support.families.registry import widen_vision

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        draft = family.draft()
        config = draft.model.config
        _widen(config, hidden, layers)
        model = type(draft.model)(config)
        widen_vision(model)
    write_checkpoint(family, Draft(model, draft.processor), folder)
    return str(folder)


def _widen(config: Any, hidden: int, layers: int) -> None:
    """Change the sizes of a decoder, and of what gives it image features, where the configuration says that."""
    text = config.get_text_config()
    narrow = text.hidden_size
    types = getattr(text, "layer_types", None)
    text.hidden_size, text.intermediate_size = hidden, 4 * hidden
    text.num_hidden_layers = layers
    text.num_attention_heads = text.num_key_value_heads = hidden // HEAD_SIZE
    text.initializer_range *= (narrow / hidden) ** 0.5  # logits of the same spread
    if types is not None:
        text.layer_types = [types[index % len(types)] for index in range(layers)]
    if getattr(config.vision_config, "out_hidden_size", None) == narrow:
        config.vision_config.out_hidden_size = hidden
