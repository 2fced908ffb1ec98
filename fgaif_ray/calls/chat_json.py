"""Encoding of chat messages as JSON, thousands of times a second.

A prompt's system message is some kilobytes and the same in every call, so it is encoded once. Encoders are made
once, because ``json.dumps`` makes one at every call that asks for anything but its defaults.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Final

SYSTEM: Final = "system"
KNOWN: Final = 64
"""System messages that are remembered; a run has one or two."""


class MessagesEncoder:
    """Encoder of a list of messages; its text is that of the JSON encoder.

    Example: ``MessagesEncoder(json.JSONEncoder())([{"role": "user", "content": "Hello."}])``
    """

    def __init__(self, encoder: json.JSONEncoder) -> None:
        """Args:
        encoder: one without ``indent``, and with the default separators.
        """
        self._encode = encoder.encode
        self._known = functools.lru_cache(maxsize=KNOWN)(lambda items: encoder.encode(dict(items)))

    def __call__(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Encode the messages as a JSON list."""
        return f"[{', '.join(map(self._message, messages))}]"

    def _message(self, message: Mapping[str, str]) -> str:
        return self._known(tuple(message.items())) if message.get("role") == SYSTEM else self._encode(message)
