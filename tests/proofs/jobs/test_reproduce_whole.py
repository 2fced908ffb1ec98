"""`fgaif reproduce` whole, with the small models of the embedded world in place of the frozen ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.benchmark_files import write_obj_halbench
from support.reward_helpers import picture

CHANGES = (
    "run.fact_types=[existence, attribute, relation]",
    "data.sample_images=24",
    "data.align_images=1",
    "data.evaluate_images=2",
    "sample.samples_per_prompt=3",
    "sample.shared_prefixes=true",
    "rewards.epochs=1",
    "rewards.num_workers=1",
    "rewards.fact_counts=false",
    "align.algorithm=c-dpo",
    "align.reward.unit=segment",
    "align.steps=2",
    "align.num_workers=1",
    "align.dpo.pairs_per_step=4",
    "align.dpo.learning_rate=0.001",
    "evaluate.max_tokens=16",
)


@pytest.mark.proof
@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.timeout(3600)
def test_the_loop_is_followed_by_the_benchmark(repository: Path, tmp_path: Path) -> None:
    path = write_obj_halbench(tmp_path / "obj_halbench", picture())
    changes = [
        *CHANGES,
        f"run.dir={tmp_path / 'run'}",
        f"evaluate.benchmarks.obj_halbench={{path: {path}, extraction: words, max_tokens: 16}}",
    ]
    words = [word for change in changes for word in ("--set", change)]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.reproduce", "sentinel", "--config", "configs/shapes.yaml", *words],
        cwd=repository,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    found = json.loads((tmp_path / "run" / "reproduction.json").read_text())
    assert not found["frozen"]
    assert [(row["figure"], row["policy"]) for row in found["rows"]] == [
        (figure, which) for figure in ("response", "mention") for which in ("before", "after")
    ]
    assert "published" in done.stdout
