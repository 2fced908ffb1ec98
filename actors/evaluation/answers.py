"""The answers of an evaluation: those of an earlier one that can be kept, and the others by the engine."""

from collections.abc import Sequence
from typing import Final

from actors.cluster.connect import connect
from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import find_user_error
from fgaif_ray.evaluation import BEFORE, POLICIES
from fgaif_ray.evaluation.rows import (
    ANSWERS_SCHEMA,
    QUESTIONS_SCHEMA,
    REJECTED_FOLDER,
    EvaluationAnswer,
    EvaluationQuestion,
)
from fgaif_ray.progress import Progress, say
from fgaif_ray.storage import stages
from fgaif_ray.vlm.checkpoint import check_adapter
from fgaif_ray.vlm.front_end import load_front_end

KEPT_PART: Final = "before-kept"
"""Name of the part with answers that were taken from an earlier evaluation."""


def rejected_folder(stage: storage.Stage) -> str:
    """Where the rows are whose image cannot be read."""
    return storage.join(stage.partial, REJECTED_FOLDER)


def keep_before(stage: storage.Stage, key: str) -> None:
    """Take over what the policy before alignment answered in the published stage, where another one was aligned."""
    published = storage.read_manifest(stage.run, stage.name)
    if published is None or published.get("before") != key:
        return
    done = _done(stage)
    answers = map(EvaluationAnswer.from_row, storage.read_rows(stage.folder))
    kept = [one for one in answers if one.question.which == BEFORE and one.question.id not in done]
    if kept:
        storage.write_part(stage.partial, [one.to_row() for one in kept], ANSWERS_SCHEMA, KEPT_PART)
        say(f"evaluate: {len(kept)} answers of the policy before alignment are taken from {stage.folder}.")


def _done(stage: storage.Stage) -> set[str]:
    """Identities of the questions that are answered, or whose image was rejected."""
    return {
        row["id"] for folder in (stage.partial, rejected_folder(stage)) for row in storage.read_rows(folder, ["id"])
    }


def answer(config: Config, stage: storage.Stage, questions: Sequence[EvaluationQuestion]) -> None:
    """Answer the questions that have no answer yet.

    Raises:
        UserError: the policy, its adapter or a prompt cannot be used.
    """
    done = _done(stage)
    pending = [question for question in questions if question.id not in done]
    if not pending:
        return
    # A wrong model or prompt is better found before Ray and an engine are started for it.
    asked = dict.fromkeys((question.prompt, len(question.images)) for question in pending)
    prompts = [one for one in asked if config.data.can_ask(*one)]
    front_end = load_front_end(config.policy.model, config.data.chat_template_kwargs)
    front_end.check_prompts(prompts, config.evaluate.engine.max_model_len)
    adapter = storage.join(config.run.dir, stages.POLICY)
    rank = check_adapter(adapter)
    with connect(config), Progress("evaluate", len(questions), "answers", initial=len(done)) as progress:
        from actors.engine.blocks import blocks_of
        from actors.evaluation.generator import answer_questions

        size = config.evaluate.batch_size
        blocks = [
            block
            for which in POLICIES
            for block in blocks_of((one for one in pending if one.which == which), size, QUESTIONS_SCHEMA)
        ]
        try:
            for counts in answer_questions(config, blocks, adapter, rank, stage.partial):
                progress.advance(counts.done + counts.rejected)
        except Exception as error:
            raise (find_user_error(error) or error) from error
