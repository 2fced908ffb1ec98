"""Find the verifier's thresholds on labelled facts, and say how good its verdicts are; labels nothing.

FILE holds JSON lines {"image", "fact", "type", "consistent"}; `fgaif audit import` writes such a file. Writes
`calibration/` into the run's folder.

Examples:
    fgaif calibrate facts.jsonl --config my.yaml
    fgaif label --config my.yaml --set label.verifier.calibration.path=facts.jsonl
"""

import sys
from typing import Annotated

import typer

from actors.labelling.thresholds import FIGURES_FILE, STAGES, calibration_lines, find_thresholds
from fgaif_ray import storage
from fgaif_ray.config import CalibrationConfig, Config
from fgaif_ray.progress import say
from jobs.cli import ConfigOption, SetOption, main, read_config


@storage.writes_run("calibrate")
def calibrate_on(config: Config, path: str) -> None:
    """Verify the labelled facts of a file and report thresholds; labels nothing.

    Raises:
        UserError: the file, one of its images or the verifier cannot be used.
    """
    verifier = config.label.verifier
    calibration = (
        CalibrationConfig(path=path)
        if verifier.calibration is None
        else verifier.calibration.model_copy(update={"path": path})
    )
    chosen = verifier.model_copy(update={"calibration": calibration})
    label = config.label.model_copy(update={"verifier": chosen})
    find_thresholds(config.model_copy(update={"label": label}))
    folder = storage.join(config.run.dir, STAGES["verifier"])
    for line in calibration_lines(storage.read_json(storage.join(folder, FIGURES_FILE)), folder)[1:]:
        say(line)
    say(f"calibrate: `--set label.verifier.calibration.path={path}` labels with these thresholds.")


def command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="labelled facts", show_default=False)],
    config: ConfigOption,
    overrides: SetOption = None,
) -> None:
    """What `fgaif calibrate` does."""
    calibrate_on(read_config(config, overrides), file)


if __name__ == "__main__":
    sys.exit(main("calibrate"))
