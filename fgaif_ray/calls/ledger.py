"""The account of a run's paid calls, over all attempts.

Every call is recorded before it is sent and again when its end is known. A call without an end, because its worker was
killed or it ran into the time limit, may have been billed. It counts by its estimate, apart from the tokens that the
endpoint has reported.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from fgaif_ray import storage
from fgaif_ray.calls.tokens import CallSize
from fgaif_ray.config import PriceConfig
from fgaif_ray.storage.line_log import LineLog, read_lines

FOLDER: Final = "{purpose}-ledger"
"""Folder of a run that holds the lines; it outlives stages that are repeated with other settings."""
EXTRACTION: Final = "extraction"
LEDGER_FILE: Final = "ledger.json"
PREFIX: Final = "calls"


@dataclass
class LedgerTotals:
    """Sums over calls."""

    calls: int = 0
    """Requests that were sent, including retries."""
    answered: int = 0
    retries: int = 0
    """Retries of failed requests."""
    repairs: int = 0
    """Requests that showed the model its unusable answer."""
    cache_hits: int = 0
    """Answers that were known already."""
    prompt_tokens: int = 0
    """Tokens of answered calls, as the endpoint counts them."""
    completion_tokens: int = 0
    uncounted: int = 0
    """Answers without a token count, taken by their estimate."""
    unknown_calls: int = 0
    """Requests whose end is unknown; they may have been billed."""
    unknown_prompt_tokens: int = 0
    """Estimate."""
    unknown_completion_tokens: int = 0
    failed_by_reason: Counter[str] = field(default_factory=Counter)
    """Requests that brought no answer."""
    unusable_by_reason: Counter[str] = field(default_factory=Counter)
    """Answers that were paid and cannot be used."""

    def money(self, price: PriceConfig) -> float:
        """Price of the answered calls."""
        return price.cost(self.prompt_tokens, self.completion_tokens)

    def unknown_money(self, price: PriceConfig) -> float:
        """Possible further price of the calls without a known end."""
        return price.cost(self.unknown_prompt_tokens, self.unknown_completion_tokens)

    def to_dict(self, price: PriceConfig | None) -> dict[str, Any]:
        """The content of ``ledger.json``.

        ``may_be_billed`` holds, by estimate, the calls that ran into their time limit (they are among ``failed`` too)
        and those whose worker was killed: ``calls`` minus ``answered`` and ``failed``.
        """
        counts = {name: value for name, value in vars(self).items() if isinstance(value, int)}
        counts = {name: value for name, value in counts.items() if not name.startswith("unknown_")}
        return counts | {
            "failed": self.failed_by_reason.total(),
            "failed_by_reason": dict(self.failed_by_reason),
            "unusable": self.unusable_by_reason.total(),
            "unusable_by_reason": dict(self.unusable_by_reason),
            "may_be_billed": {
                "calls": self.unknown_calls,
                "prompt_tokens": self.unknown_prompt_tokens,
                "completion_tokens": self.unknown_completion_tokens,
                "money": None if price is None else self.unknown_money(price),
            },
            "money": None if price is None else self.money(price),
            "currency": None if price is None else price.currency,
        }

    def figures(self) -> dict[str, int]:
        """Return the counts that are shown with the labels' metrics."""
        return {
            "calls": self.calls,
            "failed_calls": self.failed_by_reason.total(),
            "retries": self.retries,
            "repairs": self.repairs,
            "cache_hits": self.cache_hits,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }


class CallLedger:
    """One worker's lines."""

    def __init__(self, run: str, purpose: str = EXTRACTION) -> None:
        self._log = LineLog(storage.join(run, FOLDER.format(purpose=purpose)), PREFIX)
        self._calls = 0
        self._hits = 0

    @property
    def is_buffered(self) -> bool:
        """Whether lines wait for ``flush``."""
        return self._log.is_buffered

    def sent(self, size: CallSize, *, retry: bool, repair: bool) -> int:
        """Record a call that is about to be sent; returns its number."""
        self._calls += 1
        kinds = [name for name, is_so in (("retry", retry), ("repair", repair)) if is_so]
        self._log.append({"sent": self._calls, "size": [size.prompt_tokens, size.completion_tokens], "as": kinds})
        return self._calls

    def answered(self, call: int, tokens: tuple[int, int], *, counted: bool, unusable: str | None) -> None:
        """Record an answer.

        Args:
            call: number from ``sent``.
            tokens: prompt and completion tokens.
            counted: whether the endpoint has reported them.
            unusable: why it cannot be used.
        """
        self._log.append({"answered": call, "tokens": tokens, "counted": counted, "unusable": unusable})

    def failed(self, call: int, reason: str, *, may_be_billed: bool) -> None:
        """Record a call that brought no answer."""
        self._log.append({"failed": call, "reason": reason, "may_be_billed": may_be_billed})

    def hit(self) -> None:
        """Count an answer that was known already; written with the next ``flush``."""
        self._hits += 1

    def flush(self) -> None:
        """Write pending lines."""
        if self._hits:
            hits, self._hits = self._hits, 0
            self._log.append({"hits": hits})
        self._log.flush()


def read_ledger(run: str, purpose: str = EXTRACTION) -> LedgerTotals:
    """Sum up a run's calls for one purpose, over all attempts so far."""
    totals = LedgerTotals()
    open_calls: dict[int, list[int]] = {}
    writer = ""
    for name, line in read_lines(storage.join(run, FOLDER.format(purpose=purpose)), PREFIX):
        owner = name.rsplit("/", 1)[-1][: len(PREFIX) + 33]  # files of one writer on an object store share it
        if owner != writer:
            _leave_open(totals, open_calls)
            writer = owner
        _add(totals, open_calls, line)
    _leave_open(totals, open_calls)
    return totals


def _add(totals: LedgerTotals, open_calls: dict[int, list[int]], line: dict[str, Any]) -> None:
    if "sent" in line:
        totals.calls += 1
        totals.retries += "retry" in line["as"]
        totals.repairs += "repair" in line["as"]
        open_calls[line["sent"]] = line["size"]
    elif "answered" in line:
        open_calls.pop(line["answered"], None)
        prompt_tokens, completion_tokens = line["tokens"]
        totals.answered += 1
        totals.prompt_tokens += prompt_tokens
        totals.completion_tokens += completion_tokens
        totals.uncounted += not line["counted"]
        if line["unusable"] is not None:
            totals.unusable_by_reason[line["unusable"]] += 1
    elif "failed" in line:
        totals.failed_by_reason[line["reason"]] += 1
        if not line["may_be_billed"]:
            open_calls.pop(line["failed"], None)
    elif "hits" in line:
        totals.cache_hits += line["hits"]


def _leave_open(totals: LedgerTotals, open_calls: dict[int, list[int]]) -> None:
    """Count the calls of a writer that have no end; they keep their estimate."""
    for prompt_tokens, completion_tokens in open_calls.values():
        totals.unknown_calls += 1
        totals.unknown_prompt_tokens += prompt_tokens
        totals.unknown_completion_tokens += completion_tokens
    open_calls.clear()
