"""Run the whole loop on the embedded world: drawn images whose truth is known, and three tiny models that come along.

Needs no key, no GPU and no download. It takes about twelve minutes on two CPU cores; --quick takes about three, with so
few images and steps that its figures are a taste, not a result. FOLDER gets `report.html`, and `config.yaml` to go on
from with the other commands.

Examples:
    fgaif demo
    fgaif demo my-demo --quick
    fgaif demo --dry-run
"""

import importlib.util
import sys
from importlib import resources
from pathlib import Path
from typing import Annotated, Final

import typer

import fgaif_ray
from fgaif_ray import storage
from fgaif_ray.config import Config, change_config, load_config
from fgaif_ray.errors import UserError
from fgaif_ray.progress import say
from fgaif_ray.storage import stages
from fgaif_ray.tables import table_lines
from jobs.cli import OverwriteOption, SetOption, main

FOLDER: Final = "fgaif-demo"
QUICK: Final = (
    "data.sample_images=240",
    "data.align_images=320",
    "data.evaluate_images=60",
    "rewards.epochs=2",
    "align.steps=4",
    "align.rollout_batch_size=64",
    "report.title=FGAIF on the embedded world, a taste",
)
"""The loop in about three minutes: every stage does its work, on too little to learn much."""
TASTE: Final = "So few images and steps show how it works; the figures are a taste, not a result."


def demo_config(folder: str, quick: bool = False, overrides: SetOption = None) -> Config:
    """``configs/shapes.yaml``, as it is packaged, with the packaged models and a run folder of the user's.

    Raises:
        UserError: an override cannot be used.
    """
    with resources.as_file(resources.files("fgaif_ray.shapes") / "shapes.yaml") as file:
        config = load_config(file)
    root = Path(fgaif_ray.__file__).parent.parent
    models = {
        "policy.model": config.policy.model,
        "label.extractor.serve_model": config.label.extractor.serve_model,
        "label.verifier.model": config.label.verifier.model,
        "rewards.backbone": config.rewards.backbone,
    }
    packaged = [f"{key}={root / str(path)}" for key, path in models.items()]
    return change_config(config, [*packaged, *(QUICK if quick else ()), f"run.dir={folder}", *(overrides or ())])


def plan_lines(config: Config) -> list[str]:
    """What would run and where, for people."""
    data = config.data
    plan = (
        (
            "images",
            stages.IMAGES,
            f"{data.sample_images} to label, {data.align_images} to align on, {data.evaluate_images} to evaluate on",
        ),
        ("sample", stages.RESPONSES, "the policy describes the first of them"),
        ("label", stages.FEEDBACK, "an extractor finds facts in that, a verifier judges them"),
        ("train-rewards", stages.REWARDS, f"reward models, at most {config.rewards.epochs} epochs"),
        *(
            []
            if config.align.learns_from_preferences
            else [("serve-rewards", "", "online while the policy is aligned")]
        ),
        ("align", stages.POLICY, _alignment(config)),
        ("evaluate", stages.EVALUATION, "before and after alignment"),
        ("report", stages.REPORT, "report.html"),
    )
    rows = [("stage", "folder", "state", "what")]
    for stage, folder, what in plan:
        done = folder and storage.read_manifest(config.run.dir, folder) is not None
        rows.append((stage, f"{folder}/" if folder else "-", "there" if done else "to do", what))
    return [f"In {config.run.dir}, on this machine:", "", *table_lines(rows), ""]


def _alignment(config: Config) -> str:
    align = config.align
    if align.learns_from_preferences:
        return f"{align.steps} steps of {align.dpo.pairs_per_step} pairs of responses"
    return f"{align.steps} steps of {align.rollout_batch_size} responses"


def command(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="the run's folder")] = FOLDER,
    quick: Annotated[bool, typer.Option("--quick", help="a taste in about three minutes")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would run and where; start nothing")] = False,
    overrides: SetOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """What `fgaif demo` does."""
    config = demo_config(folder, quick, [*(overrides or ()), *(["run.overwrite=true"] if overwrite else ())])
    engine_is_there = importlib.util.find_spec("vllm") is not None
    missing = "vLLM is not installed: `pip install 'fgaif-ray[cpu]'`, or 'fgaif-ray[gpu]' on a machine with one."
    if dry_run:
        for line in plan_lines(config):
            say(line)
        if quick:
            say(TASTE)
        if not engine_is_there:
            say(missing)
        say("Nothing was started.")
        return
    if not engine_is_there:
        raise UserError(missing)
    from jobs import pipeline

    if quick:
        say(TASTE)
    pipeline.run(config)
    if quick:
        say(TASTE)


if __name__ == "__main__":
    sys.exit(main("demo"))
