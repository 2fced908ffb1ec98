"""Run an experiment: named variants of one configuration over several seeds, compared in one page.

    ablation  what each part of the reward contributes, and what human labels would add
    noise     how label quality moves reward models and the final result
    ood       whether the aligned policy holds on unseen pairs and in fog, with and without augmentation
    unified   three reward models, one with three heads, or one verdict per response
    cost      what a point of hallucination removed costs, fine-grained and coarse

Every variant and seed is a run folder, <run.dir>/<experiment>/<variant>/seed-<n>/. What runs have in common is done
once: stages are taken from any other run of the same configuration that has finished them, of other experiments too.
A finished run is skipped and an interrupted one goes on; one that fails is reported, and the others go on. After every
run <run.dir>/<experiment>/<experiment>.html, its plots and results.json are written anew.
"""

import os
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.experiments.variants import NAMES, Experiment, Run, build_experiment, build_runs, experiment_folder
from fgaif_ray.progress import say
from jobs.cli import Mode, main

PLOTS_FOLDER: Final = "plots"
EXTRA: Final[dict[str, dict[str, Any]]] = {
    "name": {"choices": NAMES, "metavar": "NAME", "help": f"the experiment: {', '.join(NAMES)}"},
    "--seeds": {"default": "0", "metavar": "N,N,...", "help": "seeds of every variant, e.g. 0,1,2 (default: 0)"},
    "--variants": {
        "metavar": "NAME,...",
        "help": "only these variants (or patterns, all-*) and their reference",
    },
    "--parallel": {"type": int, "default": 1, "metavar": "N", "help": "runs at a time; more than 1 is for a cluster"},
}


def _read_seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0:
        raise UserError(f"--seeds takes whole numbers from 0 on with commas between them, e.g. 0,1,2, not {text!r}.")
    return list(dict.fromkeys(seeds))


def _build(config: Config, name: str, seeds: str, variants: str | None, parallel: int) -> tuple[Experiment, list[Run]]:
    if parallel < 1:
        raise UserError(f"--parallel takes a number from 1 on, not {parallel}.")
    chosen = [part.strip() for part in variants.split(",") if part.strip()] if variants else []
    experiment = build_experiment(name, config, chosen)
    return experiment, build_runs(experiment, config, _read_seeds(seeds))


def dry_run(config: Config, _given: bool, name: str, seeds: str, variants: str | None, parallel: int) -> None:
    """Print the runs, what they share and what there is to do; runs and writes nothing.

    Raises:
        UserError: the experiment does not go with the configuration.
    """
    from fgaif_ray.experiments.sharing import plan_lines, plan_runs
    from jobs.experiment_adopt import is_finished, other_folders, read_marker

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


def run(config: Config, name: str, seeds: str, variants: str | None, parallel: int) -> None:
    """Do the runs that are not done and write the page.

    Raises:
        UserError: the experiment does not go with the configuration, or runs failed; the others are done.
    """
    from jobs.experiment_runs import RunQueue

    experiment, runs = _build(config, name, seeds, variants, parallel)
    command = shlex.join(["python", "-m", "jobs.experiment", *sys.argv[1:]])

    def on_end(ended: Mapping[str, str | None]) -> None:
        _write(config, experiment, runs, ended, command)

    os.environ.setdefault("MPLCONFIGDIR", os.path.join(tempfile.gettempdir(), "fgaif-matplotlib"))
    with (
        storage.hold_run(experiment_folder(config, name), "experiment"),
        tempfile.TemporaryDirectory(prefix="fgaif-experiment-") as scratch,
    ):
        ended = RunQueue(runs, config, parallel, Path(scratch), on_end).work()
    results = _write(config, experiment, runs, ended, command)
    for line in _table(results):
        say(line)
    page = storage.join(experiment_folder(config, name), f"{name}.html")
    say(f"Page: {page}")
    failed = [run_name for run_name, error in ended.items() if error is not None]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed ({', '.join(failed)}): {page} and experiment.log in their "
            "folders say why; the same command tries them again."
        )


def _write(
    config: Config, experiment: Experiment, runs: Sequence[Run], ended: Mapping[str, str | None], command: str
) -> dict[str, Any]:
    """Write results and page from the runs that have ended."""
    from fgaif_ray.experiments.metrics import read_figures
    from fgaif_ray.experiments.page import build_page
    from fgaif_ray.experiments.plots import draw_plots
    from fgaif_ray.experiments.results import DONE, FAILED, PENDING, RESULTS_FILE, RunOutcome, build_results

    outcomes = []
    for one in runs:
        status = PENDING if one.name not in ended else DONE if ended[one.name] is None else FAILED
        figures = read_figures(one.folder) if status == DONE else {}
        outcomes.append(RunOutcome(one.variant.name, one.seed, one.folder, status, figures, ended.get(one.name)))
    results = build_results(experiment, outcomes)
    folder = experiment_folder(config, experiment.name)
    storage.write_json(storage.join(folder, RESULTS_FILE), results)
    plots = draw_plots(results)
    for plot in plots:
        storage.write_bytes(storage.join(folder, PLOTS_FOLDER, f"{plot.name}.svg"), plot.svg)
    storage.write_bytes(storage.join(folder, f"{experiment.name}.html"), build_page(results, command, plots).encode())
    return results


def _table(results: Mapping[str, Any]) -> list[str]:
    """The headline figures for the terminal."""
    from fgaif_ray.experiments.page import show_difference, show_figure

    def show(entry: Mapping[str, Any] | None, written: Any) -> str:
        if entry is None:
            return "-"
        text: str = written(entry["mean"], "share")
        if entry["interval"] is not None:
            text += " [" + ", ".join(written(bound, "share") for bound in entry["interval"]) + "]"
        return text

    rows = [("variant", "hallucination, overall", "difference", "coverage")]
    for variant in results["variants"]:
        overall = variant["figures"].get("hallucination.overall")
        difference = None if overall is None else overall.get("difference")
        coverage = variant["figures"].get("coverage")
        figures = (show(overall, show_figure), show(difference, show_difference), show(coverage, show_figure))
        rows.append((variant["title"], *figures))
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return ["", *("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows), ""]


MODES: Final = (
    Mode(
        "--dry-run",
        {"action": "store_true", "help": "show the runs, what they share and the work; run nothing"},
        dry_run,
    ),
)

if __name__ == "__main__":
    sys.exit(main("experiment", __doc__, run, modes=MODES, extra=EXTRA))
