"""The benchmark of families and the short check of a GPU run here as they would there, in small."""

import json
import subprocess
import sys
from typing import Any

import pytest
from support.paths import ROOT

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def last_line(module: str, *options: str) -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, "-m", module, *options], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_the_benchmark_of_families_measures_both_sides() -> None:
    found = last_line("benchmarks.families", "--families", "qwen3_vl", "--quick", "--hidden", "64", "--layers", "2")
    assert set(found) == {"qwen3_vl"}
    assert set(found["qwen3_vl"]) == {"update_over_torch", "rollout_over_vllm", "log_prob_difference"}
    assert found["qwen3_vl"]["update_over_torch"] > 0 and found["qwen3_vl"]["rollout_over_vllm"] > 0
    assert 0 <= found["qwen3_vl"]["log_prob_difference"] < 1e-3


def test_the_short_check_of_a_gpu_runs_without_one() -> None:
    found = last_line("benchmarks.gpu_smoke", "--families", "qwen3_vl", "--size", "tiny", "--minutes", "15")
    assert found["families"] == {"qwen3_vl": "ok"}
    assert found["tiny"]["update_over_torch"] > 0
