"""Train the three tiny LLaVAs of the embedded world from nothing and write their checkpoints.

The policy sees well and was taught to say wrong things; the extractor finds the facts in what it says, the annotator
verifies them. Phases that an interrupted run has finished are kept in OUTPUT/.work and not repeated. On two CPU cores
it takes hours.
"""

import argparse
import shutil
import sys
from pathlib import Path


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.pretrain_shapes", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("fgaif_ray/shapes/checkpoints"), help="checkpoint folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=20000, help="scenes of the pre-training pool")
    parser.add_argument("--steps", type=int, help="optimiser steps of every phase, in place of the recipe's")
    parser.add_argument("--probes", type=int, default=300, help="held-out scenes measured for the model cards")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="where to train: cpu or cuda")
    parser.add_argument("--workers", type=int, default=0, help="processes that make each stream of batches ahead")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the phases that are not done yet; returns the exit status."""
    options = _parse(arguments)
    import torch

    from fgaif_ray.shapes import recipe

    torch.set_num_threads(options.threads)
    work = options.output / ".work"
    work.mkdir(parents=True, exist_ok=True)
    recipe.run_phases(
        work,
        options.output,
        options.scenes,
        options.seed,
        options.probes,
        options.steps,
        options.device,
        options.workers,
    )
    shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\npretrain_shapes: interrupted; run the same command again to go on.", file=sys.stderr)
        sys.exit(130)
