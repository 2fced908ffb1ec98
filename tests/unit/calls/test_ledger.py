"""The account of calls: sums over workers and attempts, also where some were killed."""

import uuid
from pathlib import Path

import pytest

from fgaif_ray.calls.ledger import CallLedger, read_ledger
from fgaif_ray.calls.tokens import CallSize
from fgaif_ray.config import PriceConfig

SIZE = CallSize(100, 20, 500)
PRICE = PriceConfig(input_per_million=1, output_per_million=4, currency="EUR")


def fill(run: str) -> None:
    """Two workers: five calls, of which one is answered badly and repaired, one fails, one has no end."""
    first = CallLedger(run)
    first.answered(first.sent(SIZE, retry=False, repair=False), (90, 30), counted=True, unusable="malformed")
    first.answered(first.sent(SIZE, retry=False, repair=True), (120, 10), counted=True, unusable=None)
    first.hit()
    first.hit()
    first.flush()
    second = CallLedger(run)
    second.failed(second.sent(SIZE, retry=False, repair=False), "status 500", may_be_billed=False)
    second.answered(second.sent(SIZE, retry=True, repair=False), (90, 5), counted=True, unusable=None)
    second.sent(SIZE, retry=False, repair=False)
    second.flush()


@pytest.mark.parametrize("store", ["local", "memory"])
def test_sums_over_workers(tmp_path: Path, store: str) -> None:
    run = str(tmp_path) if store == "local" else f"memory://{uuid.uuid4().hex}"
    fill(run)
    totals = read_ledger(run)
    assert (totals.calls, totals.answered, totals.retries, totals.repairs, totals.cache_hits) == (5, 3, 1, 1, 2)
    assert (totals.prompt_tokens, totals.completion_tokens) == (300, 45)
    assert (totals.failed_by_reason, totals.unusable_by_reason) == ({"status 500": 1}, {"malformed": 1})


def test_a_call_without_an_end_keeps_its_estimate_apart(tmp_path: Path) -> None:
    fill(str(tmp_path))
    ledger = read_ledger(str(tmp_path)).to_dict(PRICE)
    assert ledger["may_be_billed"] == {
        "calls": 1,
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "money": pytest.approx(180e-6),
    }
    assert ledger["money"] == pytest.approx(480e-6)
    assert ledger["currency"] == "EUR"


def test_every_call_is_answered_or_failed_or_lost_with_its_worker(tmp_path: Path) -> None:
    fill(str(tmp_path))
    ledger = read_ledger(str(tmp_path)).to_dict(None)
    assert ledger["calls"] == ledger["answered"] + ledger["failed"] + ledger["may_be_billed"]["calls"]


def test_a_call_that_ran_into_its_time_limit_failed_and_may_be_billed(tmp_path: Path) -> None:
    ledger = CallLedger(str(tmp_path))
    ledger.failed(ledger.sent(SIZE, retry=False, repair=False), "timeout", may_be_billed=True)
    totals = read_ledger(str(tmp_path))
    assert totals.failed_by_reason == {"timeout": 1}
    assert totals.unknown_prompt_tokens == 100


def test_an_answer_without_a_count_is_taken_by_its_estimate_and_told(tmp_path: Path) -> None:
    ledger = CallLedger(str(tmp_path))
    ledger.answered(ledger.sent(SIZE, retry=False, repair=False), (100, 20), counted=False, unusable=None)
    assert read_ledger(str(tmp_path)).uncounted == 1


def test_a_run_without_calls_has_an_empty_account(tmp_path: Path) -> None:
    assert read_ledger(str(tmp_path)).to_dict(None)["calls"] == 0
