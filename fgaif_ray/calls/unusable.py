"""Why the answer to a call cannot be used."""

from typing import Literal

Reason = Literal[
    "empty", "language", "length", "malformed", "refusal", "rejected", "server", "shape", "timeout", "white_space"
]
"""Why a row has no facts: named so that rejected rows can be counted by it."""


class UnusableAnswer(Exception):
    """No usable facts for a response: the row is rejected with ``reason``, the others go on.

    The message is ``"{reason}: {detail}"``; ``detail`` is one sentence for people and for the repair try.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"
