"""Bodies of requests: how large one may be, and how much of them the gateway holds at a time."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from starlette.types import Message, Receive

from actors.rewards.service_error import ServiceError
from fgaif_ray.serving.wire import MAX_BODY_BYTES, MAX_BODY_KEYS, MAX_BODY_VALUES, count_keys, count_values

MAX_HELD_BYTES: Final = 4 * MAX_BODY_BYTES
"""Bytes of all bodies that are being read, or whose requests are being answered."""
RETRY_AFTER_S: Final = 1


class HeldBodies:
    """The bodies that a gateway holds.

    Example: ``with bodies.reading() as reading: await app(scope, await reading.body(headers, receive), send)``
    """

    def __init__(self, most: int) -> None:
        """Hold at most so many bytes."""
        self._most = most
        self.held = 0

    @contextmanager
    def reading(self) -> Iterator["_Reading"]:
        """Hold the body of one request while the block runs."""
        reading = _Reading(self)
        try:
            yield reading
        finally:
            self.held -= reading.size

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more may be held."""
        return self.held + size <= self._most


class _Reading:
    """The body of one request."""

    def __init__(self, bodies: HeldBodies) -> None:
        self._bodies = bodies
        self.size = 0

    async def body(self, headers: Mapping[str, str], receive: Receive) -> Receive:
        """Read the body, within the limits, and return a ``receive`` that replays it.

        Raises:
            ServiceError: it is not JSON, too large, or the gateway holds as much as it may.
        """
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type != "application/json":
            raise ServiceError(415, "unsupported_media_type", "send JSON with `Content-Type: application/json`")
        too_large = ServiceError(413, "body_too_large", f"a request may have {MAX_BODY_BYTES} bytes; send fewer items")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > MAX_BODY_BYTES:
            raise too_large
        parts: list[bytes] = []
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ServiceError(400, "disconnected", "the client went away")
            parts.append(message.get("body", b""))
            self._add(len(parts[-1]))
            if self.size > MAX_BODY_BYTES:
                raise too_large
            more = message.get("more_body", False)
        content = b"".join(parts)
        if count_values(content) > MAX_BODY_VALUES:
            reason = f"a request may have {MAX_BODY_VALUES} values and commas; send fewer items"
            raise ServiceError(413, "body_too_large", reason)
        if count_keys(content) > MAX_BODY_KEYS:
            raise ServiceError(413, "body_too_large", f"a request may have {MAX_BODY_KEYS} keys; send fewer items")
        body: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]

        async def replay() -> Message:
            return body.pop() if body else await receive()

        return replay

    def _add(self, size: int) -> None:
        if not self._bodies.has_room(size):
            raise ServiceError(429, "busy", "the service holds as many requests as it has memory for", RETRY_AFTER_S)
        self.size += size
        self._bodies.held += size
