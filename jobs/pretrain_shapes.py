"""Train the three tiny LLaVAs of the embedded world from nothing and write their checkpoints.

The policy sees well and was taught to say wrong things; the extractor finds the facts in what it says, the annotator
verifies them. Phases that an interrupted run has finished are kept in OUTPUT/.work and not repeated. On two CPU cores
it takes hours.

Examples:
    fgaif pretrain-shapes
    fgaif pretrain-shapes --output checkpoints --device cuda
"""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import main


def command(
    output: Annotated[Path, typer.Option(help="checkpoint folder")] = Path("fgaif_ray/shapes/checkpoints"),
    seed: int = 0,
    scenes: Annotated[int, typer.Option(help="scenes of the pre-training pool")] = 20000,
    steps: Annotated[int | None, typer.Option(help="optimiser steps of every phase, in place of the recipe's")] = None,
    probes: Annotated[int, typer.Option(help="held-out scenes measured for the model cards")] = 300,
    threads: int = 2,
    device: Annotated[str, typer.Option(help="where to train: cpu or cuda")] = "cpu",
    workers: Annotated[int, typer.Option(help="processes that make each stream of batches ahead")] = 0,
) -> None:
    """Run the phases that are not done yet."""
    import torch

    from fgaif_ray.shapes import recipe

    torch.set_num_threads(threads)
    work = output / ".work"
    work.mkdir(parents=True, exist_ok=True)
    recipe.run_phases(work, output, scenes, seed, probes, steps, device, workers)
    shutil.rmtree(work)


if __name__ == "__main__":
    sys.exit(main("pretrain-shapes"))
