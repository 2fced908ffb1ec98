"""Why the answer to a call cannot be used."""

from typing import Literal

Reason = Literal[
    "empty", "language", "length", "malformed", "refusal", "rejected", "server", "shape", "timeout", "white_space"
]
"""Reasons why a row has no facts, by which rejected rows are counted."""


class UnusableAnswer(Exception):
    """Error of a response without usable facts: its row is rejected with ``reason``, and the others go on.

    The message is ``"{reason}: {detail}"``; ``detail`` is one sentence for people and for the repair try.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"
