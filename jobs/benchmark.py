"""Run public benchmarks and score them by the official rules: both policies in one run, or the reward models.

NAMES are some of those below with commas between them; evaluate.benchmarks says where their files lie. Answers the
questions with the policy before and after alignment, or takes answers that were made elsewhere; a benchmark of reward
models scores the run's own. Writes `benchmarks/<name>/` (answers, verdicts) and `benchmarks.json` into the run's
folder.

Examples:
    fgaif benchmark pope,chair,amber --config my.yaml
    fgaif benchmark mmhal,llava-bench --config my.yaml --dry-run
    fgaif benchmark pope --config my.yaml --answers base.jsonl --answers mine.jsonl
"""

import sys
from typing import Annotated

import typer

from fgaif_ray.evaluation.benchmarks.registry import listing
from fgaif_ray.tables import table_lines
from jobs.cli import ConfigOption, OverwriteOption, SetOption, main, read_config

__doc__ = "\n    ".join([f"{__doc__}\nBenchmarks:", *table_lines(listing())])


def command(
    names: Annotated[
        str, typer.Argument(metavar="NAMES", help="of benchmarks, with commas between them", show_default=False)
    ],
    config: ConfigOption,
    overrides: SetOption = None,
    overwrite: OverwriteOption = False,
    answers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="score these answers (JSON lines), start no engine; may be given several times"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="tell what would be asked and paid, and do nothing")
    ] = False,
) -> None:
    """What `fgaif benchmark` does."""
    from actors.evaluation.benchmarks import run_benchmarks

    run_benchmarks(read_config(config, overrides, overwrite), names, answers, dry_run)


if __name__ == "__main__":
    sys.exit(main("benchmark"))
