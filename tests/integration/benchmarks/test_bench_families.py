"""The benchmark of families runs here as it would on a GPU, in small."""

import json
import subprocess
import sys

import pytest
from support.paths import ROOT


@pytest.mark.vllm
@pytest.mark.slow
def test_the_benchmark_of_families_measures_both_sides() -> None:
    command = [sys.executable, "-m", "benchmarks.families"]
    options = ["--families", "qwen3_vl", "--quick", "--hidden", "64", "--layers", "2"]
    result = subprocess.run([*command, *options], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert set(found) == {"qwen3_vl"}
    assert set(found["qwen3_vl"]) == {"update_over_torch", "rollout_over_vllm", "log_prob_difference"}
    assert found["qwen3_vl"]["update_over_torch"] > 0 and found["qwen3_vl"]["rollout_over_vllm"] > 0
    assert 0 <= found["qwen3_vl"]["log_prob_difference"] < 1e-3
