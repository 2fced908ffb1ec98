"""The rows of ``evaluation/``: question, policy and answer."""

from typing import Final

import pyarrow as pa

QUESTIONS_SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("which", pa.string(), nullable=False),  # BEFORE or AFTER; one a block
        pa.field("task", pa.string(), nullable=False),
        pa.field("image", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("temperature", pa.float32(), nullable=False),  # 0 is greedy
        pa.field("max_tokens", pa.int32(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
    ]
)
ANSWERS_SCHEMA: Final = pa.schema(
    [
        *QUESTIONS_SCHEMA,
        pa.field("response", pa.string(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
    ]
)
REJECTED_SCHEMA: Final = pa.schema([*QUESTIONS_SCHEMA, pa.field("reason", pa.string(), nullable=False)])
REJECTED_FOLDER: Final = "rejected"
"""Folder inside the stage that holds the questions about images that cannot be read."""
