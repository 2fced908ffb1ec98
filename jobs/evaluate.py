"""Evaluate the policy before and after alignment on held-out images.

Describes every image greedily and sampled at T=1, and, where the truth of the images is known, answers POPE's
questions. Reads `policy/`, writes `evaluation/` into the run's folder: all responses, and `metrics.json` with
hallucination rates per type, coverage, facts per response and POPE's figures, each rate with a 95 % interval.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation import BEFORE, GREEDY, POLICIES, POPE, SAMPLED
from fgaif_ray.evaluation.rows import ANSWERS_SCHEMA, QUESTIONS_SCHEMA, REJECTED_FOLDER
from fgaif_ray.progress import Progress, say, say_rejected
from fgaif_ray.records import fingerprint
from fgaif_ray.storage import stages
from fgaif_ray.vlm.checkpoint import check_adapter, check_checkpoint
from fgaif_ray.vlm.front_end import load_front_end
from jobs import evaluate_benchmarks, evaluate_serve
from jobs.cli import find_user_error, main
from jobs.plan import plan_mode

if TYPE_CHECKING:
    from fgaif_ray.evaluation.pope import PopeQuestion
    from fgaif_ray.shapes.scenes import Scene
    from fgaif_ray.sources import ImageSets

METRICS_FILE: Final = "metrics.json"
POPE_MAX_TOKENS: Final = 8
"""The official rule reads no further than the first full stop."""
KEPT_PART: Final = "before-kept"
"""Name of the part with answers that were taken from an earlier evaluation."""
NO_TRUTH_NOTE: Final = (
    "The truth of these images is not known: only responses and their lengths are here, no rates and no POPE figures."
)

Truth = dict[str, "Scene"]


@storage.writes_run("evaluate")
def run(config: Config) -> None:
    """Answer what is not answered yet, measure, and publish ``evaluation/``.

    Raises:
        UserError: the policy has not been aligned yet, or images or models cannot be used.
    """
    from fgaif_ray.sources import load_truth, prepare_images

    started = time.monotonic()
    stages.require(config.run.dir, stages.POLICY)
    if storage.read_manifest(config.run.dir, stages.EVALUATION) is None:
        check_checkpoint(config.policy.model)
    sets = prepare_images(config)
    images = sets.evaluate
    stage = stages.evaluation(config, sets)
    if stage.is_complete():
        say(f"evaluate: {stage.folder} is up to date.")
        return
    truth = load_truth(config)
    splits = _pope_splits(config, images, truth) if truth is not None else {}
    questions = _questions(config, sets, splits)
    before = stages.answers_before(config, sets)
    stage.begin(overwrite=config.run.overwrite)
    _keep_before(stage, before)
    _answer(config, stage, questions)
    rows = list(storage.read_rows(stage.partial))
    rejected = {row["image"]: row["reason"] for row in storage.read_rows(_rejected(stage), ["image", "reason"])}
    kept = [image for image in images if image not in rejected]
    if len(rows) != sum(question["image"] not in rejected for question in questions):
        raise RuntimeError(f"{len(questions)} questions gave {len(rows)} answers")
    if not kept:
        raise UserError(f"None of the {len(images)} images could be read; the first: {rejected[images[0]]}")
    metrics = _measure(config, rows, truth, splits)
    metrics["rejected_images"] = len(rejected)
    metrics["seconds"] = round(time.monotonic() - started, 1)
    storage.write_json(storage.join(stage.partial, METRICS_FILE), metrics)
    counts = {"images": len(kept), "rows": len(rows), "rejected_images": len(rejected)}
    stage.publish(counts | {"before": before})
    lost = ({"image": image, "reason": reason} for image, reason in rejected.items())
    say_rejected("evaluate", lost, len(rejected), storage.join(stage.folder, REJECTED_FOLDER))
    say(f"evaluate: {len(rows)} answers about {len(kept)} images, figures in {stage.folder}/{METRICS_FILE}.")


def _pope_splits(config: Config, images: Sequence[str], truth: Truth) -> "dict[str, list[PopeQuestion]]":
    from fgaif_ray.evaluation.pope import STRATEGIES, build_questions

    objects = {image: [item.shape for item in truth[image].objects] for image in images}
    count = config.evaluate.pope_questions_per_image // 2 * 2
    return {
        strategy: build_questions(objects, strategy, questions_per_image=count, seed=config.run.seed)
        for strategy in STRATEGIES
    }


def _questions(config: Config, sets: "ImageSets", splits: "dict[str, list[PopeQuestion]]") -> list[dict[str, Any]]:
    """Rows of ``QUESTIONS_SCHEMA``, before the aligned policy's first; a question of several splits is asked once."""
    asked: list[tuple[str, str, str, float, int]] = []  # task, image, prompt, temperature, max_tokens
    for task, temperature in ((SAMPLED, 1.0), (GREEDY, 0.0)):
        for image, prompt in sets.questions(sets.evaluate, config.data.prompts):
            asked.append((task, image, prompt, temperature, config.evaluate.max_tokens))
    about = dict.fromkeys((question.image, question.text) for split in splits.values() for question in split)
    asked += [(POPE, image, text, 0.0, POPE_MAX_TOKENS) for image, text in about]
    rows = []
    for which in POLICIES:
        for index, (task, image, prompt, temperature, max_tokens) in enumerate(asked):
            seed = int(fingerprint(config.run.seed, task, index)[:8], 16)
            rows.append(
                {
                    "id": fingerprint(which, task, image, prompt),
                    "which": which,
                    "task": task,
                    "image": image,
                    "prompt": prompt,
                    "temperature": temperature,
                    "max_tokens": max_tokens,
                    "seed": seed,
                }
            )
    return rows


def _rejected(stage: storage.Stage) -> str:
    return storage.join(stage.partial, REJECTED_FOLDER)


def _keep_before(stage: storage.Stage, key: str) -> None:
    """Take over what the policy before alignment answered in the published stage, where another one was aligned."""
    published = storage.read_manifest(stage.run, stage.name)
    if published is None or published.get("before") != key:
        return
    done = _done(stage)
    rows = storage.read_rows(stage.folder)
    kept = [row for row in rows if row["which"] == BEFORE and row["id"] not in done]
    if kept:
        storage.write_part(stage.partial, kept, ANSWERS_SCHEMA, KEPT_PART)
        say(f"evaluate: {len(kept)} answers of the policy before alignment are taken from {stage.folder}.")


def _done(stage: storage.Stage) -> set[str]:
    """Identities of the questions that are answered, or whose image was rejected."""
    return {row["id"] for folder in (stage.partial, _rejected(stage)) for row in storage.read_rows(folder, ["id"])}


def _answer(config: Config, stage: storage.Stage, questions: list[dict[str, Any]]) -> None:
    done = _done(stage)
    pending = [row for row in questions if row["id"] not in done]
    if not pending:
        return
    from actors.cluster.connect import connect

    # A wrong model or prompt is better found before Ray and an engine are started for it.
    prompts = (row["prompt"] for row in pending)
    load_front_end(config.policy.model).check_prompts(prompts, config.evaluate.engine.max_model_len)
    adapter = storage.join(config.run.dir, stages.POLICY)
    rank = check_adapter(adapter)
    with connect(config), Progress("evaluate", len(questions), "answers", initial=len(done)) as progress:
        from actors.engine.blocks import blocks_of
        from actors.evaluation.generator import answer_questions

        blocks = []
        for which in POLICIES:
            of_one = [row for row in pending if row["which"] == which]
            blocks += blocks_of(of_one, config.evaluate.batch_size, QUESTIONS_SCHEMA)
        try:
            for counts in answer_questions(config, blocks, adapter, rank, stage.partial):
                progress.advance(counts["answered"] + counts["rejected"])
        except Exception as error:
            raise (find_user_error(error) or error) from error


def _measure(
    config: Config, rows: list[dict[str, Any]], truth: Truth | None, splits: "dict[str, list[PopeQuestion]]"
) -> dict[str, Any]:
    from fgaif_ray.evaluation.pope import score_splits
    from fgaif_ray.statistics.intervals import CONFIDENCE

    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["which"], row["task"]].append(row)
    metrics: dict[str, Any] = {"images": len({row["image"] for row in rows}), "confidence": CONFIDENCE}
    if truth is None:
        metrics["note"] = NO_TRUTH_NOTE
    for which in POLICIES:
        figures = _figures(groups[which, SAMPLED], truth, config.run.seed)
        figures[GREEDY] = _figures(groups[which, GREEDY], truth, config.run.seed)
        if splits:
            answers = {(row["image"], row["prompt"]): row["response"] for row in groups[which, POPE]}
            figures[POPE] = score_splits(splits, answers)
        metrics[which] = figures
    return metrics


def _figures(rows: Sequence[dict[str, Any]], truth: Truth | None, seed: int) -> dict[str, Any]:
    from fgaif_ray.evaluation.hallucination import Description, measure_descriptions, measure_lengths

    finished = [row["finish_reason"] == "stop" for row in rows]
    if truth is None:
        return measure_lengths([row["response"] for row in rows], [row["image"] for row in rows], finished)
    descriptions = [
        Description(row["image"], truth[row["image"]], row["response"], done)
        for row, done in zip(rows, finished, strict=True)
    ]
    return measure_descriptions(descriptions, seed)


if __name__ == "__main__":
    sys.exit(
        main("evaluate", __doc__, run, modes=(*evaluate_benchmarks.MODES, *evaluate_serve.MODES, plan_mode("evaluate")))
    )
