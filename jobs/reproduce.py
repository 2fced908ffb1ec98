"""Measure what a paper reports, by a frozen configuration: the whole loop, and then the paper's benchmark.

NAME is one of: sentinel (Qwen2.5-VL-7B on Object HalBench). First looks for all that is needed, from weights and images
to a GPU, and says what is missing; --dry-run stops there. Goes on where it was interrupted. Writes `reproduction.json`
into the run's folder: measured beside published, and whether anything but places was changed.

Examples:
    fgaif reproduce sentinel --dry-run
    fgaif reproduce sentinel --set data.path=/data/coco/train2014
"""

import sys
from pathlib import Path
from typing import Annotated, Final

import typer

import fgaif_ray
from fgaif_ray import storage
from fgaif_ray.config import Config, load_config
from fgaif_ray.errors import UserError
from fgaif_ray.progress import say
from fgaif_ray.tables import table_lines
from jobs.cli import OverwriteOption, SetOption, main

RESULT_FILE: Final = "reproduction.json"


def config_file(file: str) -> Path:
    """The configuration in the current folder, or in the repository that this program runs from.

    Raises:
        UserError: it is in neither.
    """
    for root in (Path.cwd(), Path(fgaif_ray.__file__).parent.parent):
        if (root / file).is_file():
            return root / file
    raise UserError(f"{file} is not here: run the command in the repository, or give the file with --config.")


def run(name: str, file: str | None, overrides: SetOption, overwrite: bool = False, dry_run: bool = False) -> None:
    """Look for what is needed and, unless that is all, run the loop and the benchmarks.

    Raises:
        UserError: there is no such reproduction, the configuration is wrong, or something is missing.
    """
    from fgaif_ray.experiments.reproductions import find_reproduction, requirements, thawed_by

    reproduction = find_reproduction(name)
    path = Path(file) if file is not None else config_file(reproduction.file)
    changes = [*(overrides or ()), *(["run.overwrite=true"] if overwrite else ())]
    config = load_config(path, changes)
    thawed = thawed_by(reproduction, path.read_bytes(), changes)
    say(f"{reproduction.title} ({reproduction.source}), in {config.run.dir}")
    if thawed:
        say(f"Not the frozen configuration ({', '.join(thawed)}): what it measures is no reproduction.")
    found = requirements(reproduction, config, _gpus(config))
    rows = [("needs", "what", "state")]
    rows += [(one.kind, one.what, "there" if one.missing is None else f"missing: {one.missing}") for one in found]
    for line in table_lines(rows):
        say(line)
    for line in _plan(config, reproduction.benchmarks):
        say(line)
    missing = sum(one.missing is not None for one in found)
    if dry_run:
        say(f"Nothing was run; {missing} of {len(found)} needs are missing.")
        return
    if missing:
        raise UserError(f"{missing} of {len(found)} needs of {name} are missing: the table above says what to do.")
    from jobs import pipeline

    pipeline.run(config)
    measure(name, config, thawed)


def measure(name: str, config: Config, thawed: list[str], answers: list[str] | None = None) -> None:
    """Run the benchmarks of a reproduction on the run's policies, and write what was measured beside the paper's.

    Args:
        name: of the reproduction.
        config: of a run with a policy.
        thawed: what makes it another experiment than the frozen one.
        answers: files of answers of models ``before`` and ``after``; no engine is started then.
    """
    from actors.evaluation.benchmarks import RESULTS_FILE, run_benchmarks
    from fgaif_ray.experiments.reproductions import find_reproduction, measured_rows

    reproduction = find_reproduction(name)
    run_benchmarks(config, ",".join(reproduction.benchmarks), answers)
    results = storage.read_json(storage.join(config.run.dir, RESULTS_FILE))["benchmarks"]
    rows = measured_rows(reproduction, results)
    uri = storage.join(config.run.dir, RESULT_FILE)
    storage.write_json(
        uri, {"name": name, "source": reproduction.source, "frozen": not thawed, "changed": thawed, "rows": rows}
    )
    lines = [("benchmark", "figure", "policy", "published", "measured")]
    for row in rows:
        measured = "-" if row["measured"] is None else f"{row['measured']:.1f}"
        lines.append((row["benchmark"], row["figure"], row["policy"], f"{row['published']:.1f}", measured))
    for line in table_lines(lines, right=(3, 4)):
        say(line)
    say(f"reproduce: {uri}")


def _gpus(config: Config) -> int | None:
    """GPUs of this machine; None where a cluster has them."""
    import torch

    from actors.cluster.connect import cluster_address

    return torch.cuda.device_count() if cluster_address(config) is None else None


def _plan(config: Config, benchmarks: tuple[str, ...]) -> list[str]:
    """What would run, for people."""
    from fgaif_ray.storage import stages

    folders = [stages.IMAGES, stages.RESPONSES, stages.FEEDBACK, stages.REWARDS, stages.POLICY, stages.EVALUATION]
    folders += [stages.REPORT, *(f"{stages.BENCHMARKS}/{name}" for name in benchmarks)]
    rows = [("stage", "state")]
    for folder in folders:
        done = storage.read_manifest(config.run.dir, folder) is not None
        rows.append((f"{folder}/", "there" if done else "to do"))
    return ["", *table_lines(rows), ""]


def command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="sentinel", show_default=False)],
    config: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help="in place of configs/reproduce/NAME.yaml")
    ] = None,
    overrides: SetOption = None,
    overwrite: OverwriteOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show what is missing and what would run; start nothing")
    ] = False,
) -> None:
    """What `fgaif reproduce` does."""
    run(name, config, overrides, overwrite, dry_run)


if __name__ == "__main__":
    sys.exit(main("reproduce"))
