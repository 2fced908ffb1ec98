"""The benchmark of labelling on several nodes: what it counts, and that the job's own plan runs in it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scale import Block, rate_of


def test_rows_count_while_all_verifiers_work() -> None:
    blocks = [
        Block("a", 0, 10, 10),
        Block("a", 10, 20, 10),
        Block("b", 5, 15, 20),
        Block("b", 15, 35, 20),
    ]
    # From 5, when b begins, to 20, when a ends: 5 and 10 rows of a, 20 and 5 of b.
    assert rate_of(blocks) == pytest.approx(40 / 15)


def test_verifiers_that_take_turns_have_no_common_rate() -> None:
    with pytest.raises(ValueError, match="more rows"):
        rate_of([Block("a", 0, 1, 1), Block("b", 1, 2, 1)])


@pytest.mark.ray
@pytest.mark.slow
def test_two_nodes_label_every_row(repository: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.scale", "--nodes", "2", "--blocks", "3"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert set(figures) == {"efficiency_2", "overhead_ms_per_row"}
    assert figures["efficiency_2"] > 0
