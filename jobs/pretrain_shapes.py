"""Train the two tiny LLaVAs of the embedded world from nothing, on CPU, and write their checkpoints.

The policy sees well and was taught to say wrong things; the annotator extracts facts and verifies them. Phases that an
interrupted run has finished are kept in OUTPUT/.work and not repeated.
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
    parser.add_argument("--tower-steps", type=int, default=1500, help="phase 1: the vision tower")
    parser.add_argument("--projector-steps", type=int, default=2200, help="phase 1: the projector")
    parser.add_argument("--name-steps", type=int, default=1600, help="phase 2: terse naming")
    parser.add_argument("--answer-steps", type=int, default=1400, help="phase 2: questions")
    parser.add_argument("--describe-steps", type=int, default=1200, help="phase 2: correct captions and questions")
    parser.add_argument("--describe-more-steps", type=int, default=2500, help="phase 2: correct captions (policy)")
    parser.add_argument("--policy-steps", type=int, default=150, help="phase 3: captions with planted errors")
    parser.add_argument("--annotator-steps", type=int, default=600, help="phase 3: extraction, verification")
    parser.add_argument("--probes", type=int, default=300, help="held-out scenes measured for the model cards")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the phases that are not done yet; returns the exit status."""
    options = _parse(arguments)
    import torch

    from fgaif_ray.shapes import pretraining, recipe

    torch.set_num_threads(options.threads)
    work = options.output / ".work"
    work.mkdir(parents=True, exist_ok=True)
    steps = pretraining.PhaseSteps(
        options.tower_steps,
        options.projector_steps,
        options.name_steps,
        options.answer_steps,
        options.describe_steps,
        options.describe_more_steps,
        options.policy_steps,
        options.annotator_steps,
    )
    recipe.run_phases(work, options.output, steps, scenes=options.scenes, seed=options.seed, probes=options.probes)
    shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\npretrain_shapes: interrupted; run the same command again to go on.", file=sys.stderr)
        sys.exit(130)
