"""Numbers of blocks as a dataset: each once, and few made at a time."""

import time
from bisect import bisect_left
from typing import Any

import pyarrow as pa
import pytest

from actors.labelling import block_ids
from fgaif_ray.cluster.resources import ResourceRequest

pytestmark = pytest.mark.ray
CONSUMER = ResourceRequest("Consumer", "label.extractor", 1, 1, 0, {})
TASK_NS = 300_000_000


@pytest.mark.parametrize("count", [10, block_ids.AT_A_TIME - 1])
def test_each_number_is_there_once(ray_cluster: dict[str, Any], count: int) -> None:
    # The fewer ones may not warn of tasks that have nothing to do; warnings are errors here.
    rows = block_ids.block_ids(count, CONSUMER).take_all()
    assert sorted(row["id"] for row in rows) == list(range(count))


def test_few_are_made_at_a_time(ray_cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def start_and_wait(number: int) -> list[pa.Table]:
        start = time.monotonic_ns()
        time.sleep(TASK_NS / 1e9)
        return [pa.table({block_ids.COLUMN: [start]}, schema=block_ids.SCHEMA)]

    monkeypatch.setattr(block_ids, "_read", start_and_wait)
    starts = sorted(row["id"] for row in block_ids.block_ids(24, CONSUMER).take_all())
    at_a_time = [bisect_left(starts, start + TASK_NS) - index for index, start in enumerate(starts)]
    assert max(at_a_time) <= block_ids.AT_A_TIME
