"""Why the answer to a call cannot be used."""

from collections import Counter
from collections.abc import Sequence
from typing import Final, Literal

Reason = Literal[
    "empty", "language", "length", "malformed", "refusal", "rejected", "server", "shape", "timeout", "white_space"
]
"""Reasons why a row has no facts, by which rejected rows are counted."""


ENDPOINT_REASONS: Final = frozenset({"server", "timeout"})
"""Those that are the endpoint's and not the row's: the same call may succeed another day."""


class UnusableAnswer(Exception):
    """Error of a response without usable facts: its row is rejected with ``reason``, and the others go on.

    The message is ``"{reason}: {detail}"``; ``detail`` is one sentence for people and for the repair try.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    @property
    def is_of_endpoint(self) -> bool:
        """Whether the endpoint has failed, rather than the model or this row."""
        return self.reason in ENDPOINT_REASONS

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def describe_failures(failures: Sequence[str], total: int, section: str) -> str:
    """One sentence about rows that stay pending, as the endpoint has failed on them.

    Args:
        failures: the messages of the ``UnusableAnswer`` of each row.
        total: rows in all.
        section: of the configuration, where the endpoint can be corrected.
    """
    counts = Counter(failure.partition(":")[0] for failure in failures)
    reasons = ", ".join(f"{reason} {count}" for reason, count in counts.most_common())
    return (
        f"The endpoint failed on {len(failures)} of {total} responses ({reasons}; the first: "
        f"{failures[0].rstrip('.')}), which stay to be done; all others are kept: correct {section} and run the same "
        f"command again, or leave them out with --set {section}.reject_failed=true."
    )
