"""Memory of the labelling job's own process: flat, however many rows there are."""

from pathlib import Path

import pytest
from support.fake_openai import FakeOpenAI

from benchmarks.labelling_memory import peak_rss_mib

FEW, MANY = 1_000, 100_000
LARGEST_GROWTH = 1.25


@pytest.mark.proof
@pytest.mark.ray
@pytest.mark.vllm
def test_the_driver_takes_as_much_memory_for_a_hundred_times_the_rows(tmp_path: Path) -> None:
    with FakeOpenAI() as endpoint:
        few, many = (peak_rss_mib(tmp_path / str(rows), rows, endpoint.url) for rows in (FEW, MANY))
    print(f"peak RSS of the driver: {few:.0f} MiB for {FEW} rows, {many:.0f} MiB for {MANY} rows")
    assert many < LARGEST_GROWTH * few
