"""Speed of PPO on the embedded world, as ratios that are measured in one run.

    python -m benchmarks.ppo [--only rollout update loop trl] [--quick] [--config FILE] [--set SECTION.KEY=VALUE]

Each part runs in a process of its own and tells, in the file of its name (``benchmarks/ppo_rollout.py`` ...), what is
in both sides of its ratio. The last line is one JSON object; what was not measured is null.

* ``rollout_over_vllm``: tokens per second that a rollout worker samples, over bare ``vllm.LLM.generate``;
* ``update_over_torch``: responses per second of the learner's update, over a bare torch loop of the same passes;
* ``sync_share``: share of a PPO step of ``jobs.align`` that putting the new policy into the engines takes;
* ``overlap_over_sequential``: time of a step with ``rollout.max_staleness: 1``, over that with 0;
* ``rloo_over_ppo``: time of a step of RLOO, which has no critic, over that of PPO with as many responses;
* ``step_over_trl``: responses per second of whole PPO steps, over those of TRL's ``GRPOTrainer`` (`pip install
  trl==1.16.0 datasets`; null where it is not installed).
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Final

from benchmarks import PAPER_SETUP
from fgaif_ray.config import Config, load_config

KEYS: Final = (
    "rollout_over_vllm",
    "update_over_torch",
    "sync_share",
    "overlap_over_sequential",
    "rloo_over_ppo",
    "step_over_trl",
)
ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
}
ROUNDS: Final = 7

Figures = dict[str, float | None]


def measure_rollout(config: Config, quick: bool) -> Figures:
    """Tokens per second of a rollout worker and of bare vLLM."""
    from benchmarks.ppo_rollout import measure

    found, _ = measure(config, rounds=2 if quick else ROUNDS)
    print(found.describe("rollout", "bare vLLM", "tokens"))
    return {"rollout_over_vllm": found.ratio}


def measure_update(config: Config, quick: bool) -> Figures:
    """Responses per second of the update and of a bare loop."""
    from benchmarks.ppo_update import measure

    found = measure(config, rounds=2 if quick else ROUNDS)
    print(found.describe("update", "bare torch", "responses"))
    return {"update_over_torch": found.ratio}


def measure_loop(config: Config, quick: bool) -> Figures:
    """Times of the steps of `jobs.align`, sequential, overlapped, and without a critic."""
    from benchmarks.ppo_loop import measure

    found = measure(config, steps=4 if quick else 10, repeats=1 if quick else 2)
    print(found.describe())
    return {
        "sync_share": found.sync_share,
        "overlap_over_sequential": found.over_sequential("overlapped"),
        "rloo_over_ppo": found.over_sequential("rloo"),
    }


def measure_trl(config: Config, quick: bool) -> Figures:
    """Responses per second of whole steps, ours and TRL's."""
    if any(importlib.util.find_spec(name) is None for name in ("trl", "datasets")):
        print("trl: not measured: pip install trl==1.16.0 datasets")
        return {}
    from benchmarks.ppo_trl import measure

    found = measure(config, rounds=2 if quick else ROUNDS)
    print(found.describe("step", "TRL", "responses"))
    return {"step_over_trl": found.ratio}


PARTS: Final[dict[str, Callable[[Config, bool], Figures]]] = {
    "rollout": measure_rollout,
    "update": measure_update,
    "loop": measure_loop,
    "trl": measure_trl,
}
QUICK: Final = (
    "align.rollout_batch_size=32",
    "align.ppo.minibatch_size=16",
    "align.ppo.micro_batch_size=8",
    "align.rollout.max_tokens=48",
)
"""A quarter of the configuration's batch: to see that it runs."""


def _in_own_process(part: str, options: argparse.Namespace) -> Figures:
    """Engines, Ray and thread pools keep memory and threads until their process ends."""
    command = [sys.executable, "-m", "benchmarks.ppo", "--only", part, "--config", options.config]
    command += ["--quick"] if options.quick else []
    command += [word for override in options.set for word in ("--set", override)]
    found = "{}"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                found = line
            else:
                print(line, end="", flush=True)
    if process.returncode:
        raise SystemExit(process.returncode)
    figures: Figures = json.loads(found)
    return {key: value for key, value in figures.items() if value is not None}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="measure these parts alone")
    parser.add_argument("--quick", action="store_true", help="few short rounds with small batches")
    parser.add_argument("--config", default="configs/shapes.yaml", help="its policy and align sections are measured")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change one key of it")
    options = parser.parse_args(arguments)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    config = load_config(options.config, [*PAPER_SETUP, *(QUICK if options.quick else ()), *options.set])
    figures: Figures = dict.fromkeys(KEYS)
    for part in options.only:
        alone = len(options.only) == 1
        figures |= PARTS[part](config, options.quick) if alone else _in_own_process(part, options)
    print(json.dumps({key: None if value is None else round(value, 4) for key, value in figures.items()}))


if __name__ == "__main__":
    main()
