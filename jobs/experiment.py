"""Run an experiment: named variants of one configuration over several seeds, compared in one page.

    ablation  what each part of the reward contributes, and what human labels would add
    noise     how label quality moves reward models and the final result
    ood       whether the aligned policy holds on unseen pairs and in fog, with and without augmentation
    unified   three reward models, one with three heads, or one verdict per response
    cost      what a point of hallucination removed costs, fine-grained and coarse
    blind     what is left of reward accuracy and of the gain where models are shown other images, or grey ones

Every variant and seed is a run folder, <run.dir>/<experiment>/<variant>/seed-<n>/. What runs have in common is done
once: stages are taken from any other run of the same configuration that has finished them, of other experiments too.
A finished run is skipped and an interrupted one goes on; one that fails is reported, and the others go on. After every
run <run.dir>/<experiment>/<experiment>.html, its plots and results.json are written again.

Examples:
    fgaif experiment ablation --config configs/shapes.yaml --seeds 0,1,2
    fgaif experiment noise --config configs/shapes.yaml --variants 'all-*' --dry-run
"""

import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.experiments.variants import NAMES, Experiment, Run, build_experiment, build_runs, experiment_folder
from fgaif_ray.progress import say
from jobs.cli import ConfigOption, SetOption, main, read_config


def _read_seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or max(seeds) >= 1 << 63:
        raise UserError(
            f"--seeds takes whole numbers from 0 to 2^63 - 1 with commas between them, e.g. 0,1,2, not {text!r}."
        )
    return list(dict.fromkeys(seeds))


def _build(config: Config, name: str, seeds: str, variants: str | None, parallel: int) -> tuple[Experiment, list[Run]]:
    if parallel < 1:
        raise UserError(f"--parallel takes a number from 1 on, not {parallel}.")
    chosen = [part.strip() for part in variants.split(",") if part.strip()] if variants else []
    experiment = build_experiment(name, config, chosen)
    return experiment, build_runs(experiment, config, _read_seeds(seeds))


def show_runs(config: Config, name: str, seeds: str, variants: str | None, parallel: int) -> None:
    """Print the runs, what they share and what there is to do; runs and writes nothing.

    Raises:
        UserError: the experiment does not go with the configuration.
    """
    from fgaif_ray.experiments.adopt import is_finished, other_folders, read_marker
    from fgaif_ray.experiments.sharing import plan_lines, plan_runs

    experiment, runs = _build(config, name, seeds, variants, parallel)
    known: dict[str, str] = {}
    timing: Mapping[str, float] | None = _timing(config.run.dir)
    for folder in other_folders(config):
        marker = read_marker(folder)
        if marker is not None and not folder.startswith(experiment_folder(config, name) + "/"):
            known |= {key: folder for key in marker["keys"].values() if key not in known}
        timing = timing or _timing(folder)
    finished = [run.name for run in runs if is_finished(run)]
    say(f"{name}: {experiment.question}\n{len(runs)} runs in {experiment_folder(config, name)}\n")
    for line in plan_lines(plan_runs(runs, known), timing, finished):
        say(line)
    if parallel > 1:
        say(f"{parallel} runs at a time; one waits while another is at a stage that it would take from it.")


def _timing(folder: str) -> dict[str, float] | None:
    from fgaif_ray.report.summary import TIMING_FILE

    uri = storage.join(folder, TIMING_FILE)
    return dict(storage.read_json(uri)) if storage.exists(uri) else None


def run(config: Config, name: str, seeds: str, variants: str | None, parallel: int, command_line: str) -> None:
    """Do the runs that are not done and write the page, which shows the command line.

    Raises:
        UserError: the experiment does not go with the configuration, or runs failed; the others are done.
    """
    from fgaif_ray.experiments.outcome import results_table, write_results
    from fgaif_ray.experiments.run_queue import RunQueue

    experiment, runs = _build(config, name, seeds, variants, parallel)

    def on_end(ended: Mapping[str, str | None]) -> None:
        write_results(config, experiment, runs, ended, command_line)

    with (
        storage.hold_run(experiment_folder(config, name), "experiment"),
        tempfile.TemporaryDirectory(prefix="fgaif-experiment-") as scratch,
    ):
        ended = RunQueue(runs, config, parallel, Path(scratch), on_end).work()
    results = write_results(config, experiment, runs, ended, command_line)
    for line in results_table(results):
        say(line)
    page = storage.join(experiment_folder(config, name), f"{name}.html")
    say(f"Page: {page}")
    failed = [run_name for run_name, error in ended.items() if error is not None]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed ({', '.join(failed)}): {page} and experiment.log in their "
            "folders say why; the same command tries them again."
        )


def _command_line(
    file: str, overrides: Sequence[str], name: str, seeds: str, variants: str | None, parallel: int
) -> str:
    """The command that repeats this experiment, for its page."""
    words = ["fgaif", "experiment", name, "--config", file, "--seeds", seeds]
    words += [word for override in overrides for word in ("--set", override)]
    words += ["--variants", variants] if variants else []
    words += ["--parallel", str(parallel)] if parallel > 1 else []
    return shlex.join(words)


def command(
    name: Annotated[str, typer.Argument(metavar="NAME", help=", ".join(NAMES), show_default=False)],
    config: ConfigOption,
    overrides: SetOption = None,
    seeds: Annotated[str, typer.Option(metavar="N,N,...", help="seeds of every variant, e.g. 0,1,2")] = "0",
    variants: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="only these variants (or patterns, all-*) and their reference"),
    ] = None,
    parallel: Annotated[int, typer.Option(metavar="N", help="runs at a time; more than 1 is for a cluster")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show the runs, what they share and the work; run nothing")
    ] = False,
) -> None:
    """What `fgaif experiment` does."""
    if name not in NAMES:
        raise UserError(f"There is no experiment {name}: give one of {', '.join(NAMES)}.")
    base = read_config(config, overrides)
    if dry_run:
        show_runs(base, name, seeds, variants, parallel)
        return
    repeat = _command_line(config, overrides or (), name, seeds, variants, parallel)
    run(base, name, seeds, variants, parallel, repeat)


if __name__ == "__main__":
    sys.exit(main("experiment"))
