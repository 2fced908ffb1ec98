"""Hold the reward models of a run against the truth of the evaluation's images, where it is known.

Reads `rewards/` and `evaluation/` (the responses sampled before and after alignment), writes `reward-accuracy.json`:
balanced accuracy and confusion by fact type. The reward models' own metrics are about the labels they were trained on,
with their mistakes; these are not. Accuracy that is lost after alignment tells what the policy gets away with.

Examples:
    fgaif reward-accuracy --config configs/shapes.yaml
"""

import sys

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.progress import say
from jobs.cli import ConfigOption, SetOption, main, read_config


@storage.writes_run("reward_accuracy")
def run(config: Config) -> None:
    """Score and compare, unless that is done.

    Raises:
        UserError: a stage is missing, or the truth of the images is not known.
    """
    from fgaif_ray.experiments.accuracy import accuracy_key, is_measured, measure_accuracy

    if is_measured(config.run.dir, accuracy_key(config)):
        say("reward_accuracy: up to date.")
        return
    figures = measure_accuracy(config)
    for which, by_kind in figures.items():
        for kind, found in by_kind.items():
            value = found["balanced_accuracy"]
            share = "-" if value is None else f"{value:.3f}"
            say(f"reward_accuracy: {which} alignment, {kind} {share} of {found['count']} verdicts")


def command(config: ConfigOption, overrides: SetOption = None) -> None:
    """What `fgaif reward-accuracy` does."""
    run(read_config(config, overrides))


if __name__ == "__main__":
    sys.exit(main("reward-accuracy"))
