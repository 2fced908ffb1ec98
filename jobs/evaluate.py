"""Evaluate the policy before and after alignment on held-out images.

Describes every image greedily and sampled at T=1, and, where the truth of the images is known, answers POPE's
questions. Reads `policy/`, writes `evaluation/` into the run's folder: all responses, and `metrics.json` with
hallucination rates per type, coverage, facts per response and POPE's figures, each rate with a 95 % interval.

Examples:
    fgaif evaluate --config my.yaml
    fgaif evaluate --config my.yaml --set evaluate.max_tokens=512
"""

import sys
import time

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation.rows import REJECTED_FOLDER, EvaluationAnswer
from fgaif_ray.progress import say, say_rejected
from fgaif_ray.records import MORE_IMAGES, ImageRow, read_images
from fgaif_ray.storage import stages
from jobs.cli import ConfigOption, OverwriteOption, SetOption, main, read_config


@storage.writes_run("evaluate")
def run(config: Config) -> None:
    """Answer what is not answered yet, measure, and publish ``evaluation/``.

    Raises:
        UserError: the policy has not been aligned yet, or images or models cannot be used.
    """
    from fgaif_ray.sources import load_truth, prepare_images
    from fgaif_ray.vlm.checkpoint import check_vision_model

    started = time.monotonic()
    stages.require(config.run.dir, stages.POLICY)
    if storage.read_manifest(config.run.dir, stages.EVALUATION) is None:
        check_vision_model(config.policy.model, config.policy.allow_untested)
    sets = prepare_images(config)
    images = sets.evaluate
    stage = stages.evaluation(config, sets)
    if stage.is_complete():
        say(f"evaluate: {stage.folder} is up to date.")
        return

    from actors.evaluation.answers import answer, keep_before, rejected_folder
    from fgaif_ray.evaluation.comparison import METRICS_FILE, measure, pope_splits, questions_of

    truth = load_truth(config)
    splits = pope_splits(config, images, truth) if truth is not None else {}
    questions = questions_of(config, sets, splits)
    before = stages.answers_before(config, sets)
    stage.begin(overwrite=config.run.overwrite)
    keep_before(stage, before)
    answer(config, stage, questions)
    answers = [EvaluationAnswer.from_row(row) for row in storage.read_rows(stage.partial)]
    refused = list(storage.read_rows(rejected_folder(stage), ["id", "image", MORE_IMAGES.name, "reason"]))
    reasons = {ImageRow(**read_images(row)).images: row["reason"] for row in refused}
    if len(answers) + len({row["id"] for row in refused}) != len(questions):
        raise RuntimeError(f"{len(questions)} questions gave {len(answers)} answers and {len(refused)} rejections")
    answered = {one.question.images for one in answers}
    kept = [one for one in images if one in answered]
    if not kept:
        raise UserError(f"None of the {len(images)} images could be asked about; the first: {reasons[images[0]]}")
    metrics = measure(config, answers, truth, splits)
    rejected = len(images) - len(kept)
    metrics["rejected_images"] = rejected
    metrics["seconds"] = round(time.monotonic() - started, 1)
    storage.write_json(storage.join(stage.partial, METRICS_FILE), metrics)
    counts = {"images": len(kept), "rows": len(answers), "rejected_images": rejected}
    stage.publish(counts | {"before": before})
    named = ((one[0], reason) for one, reason in reasons.items())
    say_rejected("evaluate", named, len(reasons), storage.join(stage.folder, REJECTED_FOLDER))
    say(f"evaluate: {len(answers)} answers about {len(kept)} images, figures in {stage.folder}/{METRICS_FILE}.")


def command(config: ConfigOption, overrides: SetOption = None, overwrite: OverwriteOption = False) -> None:
    """What `fgaif evaluate` does."""
    run(read_config(config, overrides, overwrite))


if __name__ == "__main__":
    sys.exit(main("evaluate"))
