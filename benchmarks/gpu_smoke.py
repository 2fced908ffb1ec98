"""Does all of it run on this machine's GPU? Minutes instead of a run, before anything long is started there.

    python -m benchmarks.gpu_smoke [--families qwen3_vl ...] [--minutes 5] [--size 7b|1b|tiny]

1. Tiny checkpoints of some families through engine, learner and rewards: `fgaif check-model`, a process each.
2. The PPO update and reward scoring of a LLaVA of 7 billion parameters, against bare torch: `benchmarks.gpu`. Where the
   GPU has less than 60 GiB, one of 1 billion.

What does not fit into the minutes is left out, and said so. Without a GPU it runs on the CPU, in float32 and with a
tiny shape. Needs the repository (the checkpoints are built by the tests' helpers) and no network. The last line is one
JSON object; the exit status is 1 where something failed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.tiny_families import build_family, families

FAMILIES: Final = ("qwen3_vl", "qwen2_5_vl", "smolvlm", "llava", "llava_next", "internvl", "idefics3", "gemma3")
"""Those of the recipes first."""
SEVEN_BILLION_GIB: Final = 60
"""Memory of a GPU that holds a 7B model with what an update needs."""
ROUNDED: Final = 0.1
"""Largest mean difference of log-probabilities in bfloat16, nats; on a CPU these checkpoints are 0.02 apart."""
EXACT: Final = 1e-3
ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
LEFT_OUT: Final = "left out"


class Smoke:
    """The checks of one call, and how much of its time is left."""

    def __init__(self, minutes: float, dtype: str) -> None:
        self._end = time.monotonic() + 60 * minutes
        self._dtype = dtype

    def check_family(self, name: str, folder: Path) -> str:
        """``ok``, ``failed`` or ``left out``."""
        layers = ",".join(families()[name].linear_layers)
        tolerance = EXACT if self._dtype == "float32" else ROUNDED
        options = ("--dtype", self._dtype, "--tolerance", str(tolerance), "--max-model-len", "1024")
        words = ("jobs.check_model", build_family(name, folder), *options, "--target-modules", layers)
        return self._run(name, words)[0]

    def measure(self, size: str) -> tuple[str, dict[str, Any] | None]:
        """The same of `benchmarks.gpu`, and its last line."""
        words = ("benchmarks.gpu", "--size", size, "--responses", "16", "--repeats", "1")
        state, output = self._run(f"update and scoring of a {size} shape", words)
        return state, json.loads(output.splitlines()[-1]) if state == "ok" else None

    def _run(self, what: str, words: Sequence[str]) -> tuple[str, str]:
        left = self._end - time.monotonic()
        if left <= 0:
            print(f"{what}: {LEFT_OUT}, the time is over", flush=True)
            return LEFT_OUT, ""
        started = time.monotonic()
        command = [sys.executable, "-m", *words]
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=left
            )
        except subprocess.TimeoutExpired:
            print(f"{what}: {LEFT_OUT}, the time is over", flush=True)
            return LEFT_OUT, ""
        state = "failed" if done.returncode else "ok"
        print(f"{what}: {state}, {time.monotonic() - started:.0f} s", flush=True)
        print("\n".join(f"    {line}" for line in done.stdout.splitlines()), flush=True)
        return state, done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Check and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", choices=sorted(families()), default=list(FAMILIES), metavar="FAMILY")
    parser.add_argument("--minutes", type=float, default=5, help="what does not fit is left out")
    parser.add_argument("--size", choices=("7b", "1b", "tiny"), help="of the LLaVA that is measured")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="of the families")
    options = parser.parse_args(arguments)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import torch

    on_gpu = torch.cuda.is_available()
    memory = torch.cuda.get_device_properties(0).total_memory / (1 << 30) if on_gpu else 0.0
    fits = "7b" if memory >= SEVEN_BILLION_GIB else "1b"
    size = options.size or (fits if on_gpu else "tiny")
    device = f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB" if on_gpu else "CPU"
    print(f"{device}, torch {torch.__version__}", flush=True)
    smoke = Smoke(options.minutes, options.dtype or ("bfloat16" if on_gpu else "float32"))
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="fgaif-smoke-") as folder:
        for name in options.families:
            found[name] = smoke.check_family(name, Path(folder, name))
    state, figures = smoke.measure(size)
    print(json.dumps({"device": device, "families": found, size: figures if state == "ok" else state}))
    return int("failed" in (*found.values(), state))


if __name__ == "__main__":
    sys.exit(main())
