"""The benchmark of labelling on several nodes runs the job's own plan."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.proof
@pytest.mark.ray
def test_two_nodes_label_every_row(repository: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.scale", "--nodes", "2", "--blocks", "3"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert set(figures) == {"efficiency_2", "overhead_ms_per_row"}
    assert figures["efficiency_2"] > 0
