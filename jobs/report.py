"""Write report.html: one file that shows what a run has done, and needs nothing else to be opened.

Draws `report.examples` evaluation images, finds the `report.extremes` that alignment has mended most and as many of the
worst that are left, scores what was said about them with the reward models, and puts them beside the figures of every
stage.

Examples:
    fgaif report --config my.yaml
    fgaif report --config my.yaml --set report.examples=24
"""

import sys
from typing import TYPE_CHECKING

from fgaif_ray.config import Config
from fgaif_ray.storage import stages
from fgaif_ray.storage.run_lock import writes_run
from jobs.cli import ConfigOption, SetOption, main, read_config

if TYPE_CHECKING:
    from fgaif_ray.storage import Stage


@writes_run("report")
def run(config: Config) -> None:
    """Judge the examples where that is not done, and write the report.

    Raises:
        UserError: a stage is missing; the message names the job to run.
    """
    from fgaif_ray import storage
    from fgaif_ray.progress import say
    from fgaif_ray.report import REPORT_FILE, page

    run_dir = config.run.dir
    stage = stages.report(config)
    if not stage.is_complete():
        _judge(config, stage)
    uri = storage.join(run_dir, REPORT_FILE)
    storage.write_bytes(uri, page.build_report(run_dir).encode(errors="replace"))
    say(f"report: {uri}")


def _judge(config: Config, stage: "Stage") -> None:
    """Write and publish the files that only the report needs."""
    from fgaif_ray import storage
    from fgaif_ray.blind import blindfold
    from fgaif_ray.config import recorded_config
    from fgaif_ray.evaluation.rows import EvaluationAnswer
    from fgaif_ray.progress import say
    from fgaif_ray.report import EXAMPLES_FILE, SETTINGS_FILE
    from fgaif_ray.report.examples import choose_examples
    from fgaif_ray.rewards.model_files import load_reward_model
    from fgaif_ray.sources import load_truth
    from fgaif_ray.vlm.backbone import load_backbone

    run_dir = config.run.dir
    stage.begin(overwrite=True)  # it holds nothing that is not made again
    truth = load_truth(config)
    backbone = load_backbone(config.rewards.backbone, config.rewards.dtype, template=config.data.chat_template_kwargs)
    folders = stages.reward_folders(config)
    model = load_reward_model(backbone, folders, temperature_scaling=config.rewards.temperature_scaling)
    say("report: scoring examples")
    answers = list(map(EvaluationAnswer.from_row, storage.read_rows(storage.join(run_dir, stages.EVALUATION))))
    blind = blindfold(config, "rewards", [one.question.images for one in answers])
    judged = choose_examples(
        answers,
        truth,
        model,
        config.align.reward,
        config.report,
        config.run.seed,
        config.data.pixel_budget,
        blind.shown,
        config.data.language,
    )
    settings = {
        "title": config.report.title,
        "policy": config.policy.model,
        "steps": config.align.steps,
        "algorithm": config.align.algorithm,
        "verdicts_by_truth": truth is not None,
        "temperature_scaling": config.rewards.temperature_scaling,
        "config": recorded_config(config),
        **config.run.model_dump(mode="json", include={"fact_types"}),
    }
    storage.write_json(storage.join(stage.partial, EXAMPLES_FILE), [example.to_json() for example in judged])
    storage.write_json(storage.join(stage.partial, SETTINGS_FILE), settings)
    stage.publish({"examples": len(judged)})


def command(config: ConfigOption, overrides: SetOption = None) -> None:
    """What `fgaif report` does."""
    run(read_config(config, overrides))


if __name__ == "__main__":
    sys.exit(main("report"))
