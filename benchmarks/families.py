"""What the learner and the rollout workers cost beside bare torch and bare vLLM, for many families of models.

    python -m benchmarks.families [--families qwen3_vl ...] [--quick] [--hidden 256] [--layers 4]

Each family has a checkpoint with random weights, wider than the tests' so that it computes more than it calls, and a
process of its own. Both sides of a ratio take turns in it. On a machine with a GPU everything is measured there, in
bfloat16, else on the CPU, in float32 and with one thread. The last line is one JSON object, by family:

* ``update_over_torch``: responses per second of the passes before an update and the update (`benchmarks.ppo_update`),
  over those of a bare loop of the same passes;
* ``rollout_over_vllm``: tokens per second of a rollout worker (`benchmarks.ppo_rollout`), over bare `LLM.generate`;
* ``log_prob_difference``: of the worker's log-probabilities and the learner's, mean over tokens, nats.

Figures of a machine that does something else meanwhile do not count.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks import PAPER_SETUP
from benchmarks.ppo import ENVIRONMENT
from benchmarks.tiny_families import HEAD_SIZE, build_wide_family, families
from fgaif_ray.config import Config, load_config

FAMILIES: Final = (
    *("llava", "llava_next", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "smolvlm"),
)
"""Those that vLLM serves on a CPU as transformers computes them."""
ROUNDS: Final = 7
SIZE: Final = (
    "align.rollout_batch_size=32",
    "align.ppo.minibatch_size=16",
    "align.ppo.micro_batch_size=8",
    "align.rollout.max_tokens=64",
    "align.rollout.engine.max_model_len=1024",
    "align.rollout.engine.max_num_seqs=32",
)
QUICK: Final = (
    "align.rollout_batch_size=4",
    "align.ppo.minibatch_size=4",
    "align.ppo.micro_batch_size=2",
    "align.rollout.max_tokens=8",
)
"""To see that it runs."""

Figures = dict[str, float]


def configure(name: str, model: str, device: str, quick: bool) -> Config:
    """The configuration whose policy and align sections are measured."""
    dtype = "float32" if device == "cpu" else "bfloat16"
    layers = list(families()[name].linear_layers)
    return load_config(
        Path(__file__).resolve().parent.parent / "configs" / "shapes.yaml",
        [
            *PAPER_SETUP,
            f"policy.model={model}",
            f"policy.dtype={dtype}",
            f"align.rollout.engine.dtype={dtype}",
            "align.rollout.engine.gpu_memory_utilization=0.3",  # two engines and the learner share a GPU
            f"align.lora.target_modules={json.dumps(layers)}",
            *SIZE,
            *(QUICK if quick else ()),
        ],
    )


def measure(name: str, hidden: int, layers: int, quick: bool) -> Figures:
    """All figures of a family."""
    import torch

    from benchmarks import ppo_rollout, ppo_update

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rounds = 1 if quick else ROUNDS
    with tempfile.TemporaryDirectory(prefix="fgaif-family-") as folder:
        config = configure(name, build_wide_family(name, Path(folder), hidden, layers), device, quick)
        update = ppo_update.measure(config, rounds, estimates=True, device=device)
        print(f"{name}: {update.describe('update', 'bare torch', 'responses')}")
        rollout, difference = ppo_rollout.measure(config, rounds, device)
        print(f"{name}: {rollout.describe('rollout', 'bare vLLM', 'tokens')}")
    return {
        "update_over_torch": round(update.ratio, 4),
        "rollout_over_vllm": round(rollout.ratio, 4),
        "log_prob_difference": float(f"{difference:.3g}"),
    }


def _in_own_process(name: str, options: argparse.Namespace) -> Figures:
    """Engines and thread pools keep memory and threads until their process ends."""
    command = [sys.executable, "-m", "benchmarks.families", "--families", name, "--here"]
    command += ["--hidden", str(options.hidden), "--layers", str(options.layers)]
    command += ["--quick"] if options.quick else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    *lines, last = done.stdout.splitlines() or [""]
    print("\n".join(lines), flush=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    found: Figures = json.loads(last)[name]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=sorted(families()), default=list(FAMILIES), metavar="FAMILY")
    parser.add_argument("--quick", action="store_true", help="one short round, to see that it runs")
    parser.add_argument("--hidden", type=int, default=256, help=f"width of the decoder, a multiple of {HEAD_SIZE}")
    parser.add_argument("--layers", type=int, default=4, help="of the decoder, an even number")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.hidden % HEAD_SIZE or options.hidden < HEAD_SIZE:
        parser.error(f"--hidden must be a multiple of {HEAD_SIZE}")
    if options.layers % 2 or options.layers < 2:
        parser.error("--layers must be even")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    figures = {
        name: measure(name, options.hidden, options.layers, options.quick)
        if options.here
        else _in_own_process(name, options)
        for name in options.families
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
