"""What a verifier says to stop the job for also stops the extraction workers, who would go on paying."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.label_helpers import make_config

from actors.engine.block_counts import BlockCounts
from actors.labelling import plan
from actors.labelling.extraction import Endpoint

BLOCKS = (BlockCounts(done=2), BlockCounts(fatal="Stop."), BlockCounts(fatal="Stop."))


class Dataset:
    """What the plan makes of ``ray.data``."""

    def map_batches(self, *_: Any, **__: Any) -> "Dataset":
        return self

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        return (counts.to_row() for counts in BLOCKS)


def test_a_fatal_verifier_stops_the_coordinator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stops: list[str] = []
    coordinator = SimpleNamespace(stop=SimpleNamespace(remote=stops.append))
    monkeypatch.setattr(plan, "start_coordinator", lambda *_: ("address", coordinator))
    monkeypatch.setattr(plan, "block_ids", lambda *_: Dataset())
    monkeypatch.setattr(plan.ray, "put", lambda value: value)
    monkeypatch.setattr(plan.ray, "kill", lambda _actor: None)
    pending: Any = SimpleNamespace(places=None, blocks=3, rows=6)
    counts = plan.label_responses(
        make_config(tmp_path, "http://127.0.0.1:9/v1"),
        pending,
        Endpoint(None, None),
        verification=None,  # type: ignore[arg-type]
    )
    assert next(counts) == BLOCKS[0] and stops == []
    assert list(counts) == list(BLOCKS[1:])
    assert set(stops) == {"Stop."}
