"""Widths and depths of the tiny models."""

from typing import Any, Final

HIDDEN_SIZE: Final = 64
HEAD_SIZE: Final = 32
"""vLLM on a CPU refuses narrower heads."""
TEXT: Final[dict[str, Any]] = {
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,  # the usual 0.02 makes all tokens about equally likely
}
VISION: Final[dict[str, Any]] = {
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TILE: Final = 56
"""Pixels on a side of what a fixed-size vision tower sees: 4 x 4 patches of 14."""
PATCH: Final = 14
SQUARE: Final = {"height": TILE, "width": TILE}
