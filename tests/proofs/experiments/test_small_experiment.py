"""A small experiment in which everything is real."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.small_run import SMALL


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.experiment", *arguments],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        check=False,
    )


@pytest.mark.proof
@pytest.mark.ray
@pytest.mark.vllm
def test_a_small_experiment(tmp_path: Path) -> None:
    """Two levels of noise with everything real: takes minutes, since each run starts engines and Ray of its own."""
    folder = tmp_path / "run"
    arguments = ["noise", "--config", "configs/shapes.yaml", "--variants", "all-40"]
    for change in (*SMALL, "align.steps=1", f"run.dir={folder}"):
        arguments += ["--set", change]
    first = call(*arguments)
    assert first.returncode == 0, first.stdout + first.stderr
    log = (folder / "noise" / "all-40" / "seed-0" / "experiment.log").read_text()
    assert "== sample: done before" in log
    assert "nothing is asked again" in log
    assert "answers of the policy before alignment are taken" in log
    results = json.loads((folder / "noise" / "results.json").read_text())
    reference, noisy = results["variants"]
    replaced = {"labels.existence", "labels.attribute", "rewards.existence", "hallucination.overall", "seconds.align"}
    assert set(noisy["figures"]) >= replaced
    before = [variant["figures"]["hallucination.before"]["mean"] for variant in (reference, noisy)]
    assert before[0] == before[1]
    second = call(*arguments)
    assert "none/seed-0: done before" in second.stdout
    assert "all-40/seed-0: done before" in second.stdout
