"""Server-sent events as OpenAI's streams use them: data lines, and a last event ``[DONE]``."""

import json
from collections.abc import Mapping
from typing import Any, Final

DONE: Final = "[DONE]"
MEDIA_TYPE: Final = "text/event-stream"


def write_event(data: Mapping[str, Any] | str) -> bytes:
    """Encode one event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


class EventReader:
    """Reads events line by line, by the rules of the HTML standard (9.2.6); fields other than data are left out.

    Example: ``EventReader().feed("data: [DONE]")`` is None; the empty line after it gives ``"[DONE]"``.
    """

    def __init__(self) -> None:
        self._data: list[str] = []

    def feed(self, line: str) -> str | None:
        """Take a line without its end; returns the data of the event that it ends, None where it ends none."""
        if not line:
            data, self._data = "\n".join(self._data), []
            return data or None
        name, _, value = line.partition(":")
        if name == "data":
            self._data.append(value.removeprefix(" "))
        return None
