"""The short check of a GPU runs without one as it would there, in small; what it calls is tested in every suite."""

import json
import subprocess
import sys

import pytest
from support.paths import ROOT


@pytest.mark.proof
@pytest.mark.vllm
def test_the_short_check_of_a_gpu_runs_without_one() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_smoke"]
    options = ["--families", "qwen3_vl", "--size", "tiny", "--minutes", "15"]
    result = subprocess.run([*command, *options], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["families"] == {"qwen3_vl": "ok"}
    assert found["tiny"]["update_over_torch"] > 0
