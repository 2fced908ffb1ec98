"""Generation for evaluation: a Ray Data stage that answers with the model as it is and as it was aligned.

One engine serves both. The aligned policy reaches it as an adapter beside the base weights, or merged into them
(``evaluate.sync``), which is faster on CPU and exact in float32.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from PIL.Image import Image
from ray.data import ActorPoolStrategy

from actors import metrics
from actors.engine.bans import logit_bias
from actors.engine.block_counts import BlockCounts, until_fatal
from actors.engine.blocks import ONE_BLOCK, seal, unseal
from actors.engine.generate import PromptRefusedError, generate
from actors.engine.start import NO_ADAPTERS, announce_engines, image_prompt, reload_weights, start_engine
from actors.metrics.count_down import count_down
from fgaif_ray import storage
from fgaif_ray.cluster import resources
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation import AFTER, BEFORE
from fgaif_ray.evaluation.rows import (
    ANSWERS_SCHEMA,
    REJECTED_FOLDER,
    REJECTED_SCHEMA,
    EvaluationAnswer,
    EvaluationQuestion,
    RejectedQuestion,
)
from fgaif_ray.images import open_images
from fgaif_ray.progress import say
from fgaif_ray.records import fingerprint
from fgaif_ray.vlm.front_end import load_front_end
from fgaif_ray.vlm.prompt_check import PromptCheck, PromptMismatchError, row_name

if TYPE_CHECKING:
    from vllm import LLM


class Generator:
    """A worker that answers the questions of a block and writes the block as a part of the stage.

    It takes sealed tables of ``QUESTIONS_SCHEMA`` with one ``which`` each and returns the table of ``BlockCounts``;
    questions are rejected whose images cannot be read or asked about, or do not fit the engine.

    Args:
        config: ``policy``, ``evaluate``, ``align.rollout.sync``, ``run.seed``, and how ``data`` shows images.
        adapter: PEFT folder of the aligned policy, a path or URI.
        rank: rank of that adapter.
        partial: folder that gets the parts, or one for each task; the questions of a block then have one task.
    """

    def __init__(self, config: Config, adapter: str, rank: int, partial: str | Mapping[str, str]) -> None:
        self._model = config.policy.model
        self._data = config.data
        self._adapter = storage.local_copy(adapter)
        self._partial = partial
        self._front_end = load_front_end(self._model, config.data.chat_template_kwargs)
        self._engine, self._merged = self._start_engine(config, rank)
        self._check = PromptCheck(self._front_end)
        self._loaded = BEFORE

    def _start_engine(self, config: Config, rank: int) -> "tuple[LLM, bool]":
        """Start the engine; returns it and whether the aligned policy has to be merged."""

        def start(lora_rank: int | None) -> "LLM":
            return start_engine(
                self._model,
                config.evaluate.engine,
                lora_rank=lora_rank,
                seed=config.run.seed,
                images=config.data.images_per_prompt,
                banned=len(self._front_end.banned_token_ids),
            )

        if config.evaluation_sync == "merged":
            return start(None), True
        try:
            return start(rank), False
        except UserError as error:
            # Where nobody asked for an adapter, and rollouts did without.
            if (
                config.evaluate.sync is not None
                or config.align.rollout.sync == "adapter"
                or NO_ADAPTERS not in str(error)
            ):
                raise
        say("evaluate: vLLM serves no adapters for this family, so the aligned policy is merged and rounded.")
        return start(None), True

    def __call__(self, sealed: pa.Table) -> pa.Table:
        questions = [EvaluationQuestion.from_row(row) for row in unseal(sealed).to_pylist()]
        asked: list[EvaluationQuestion] = []
        rejected: list[RejectedQuestion] = []
        opened = open_images((path for question in questions for path in question.images), self._data.pixel_budget)
        for question in questions:
            if (reason := self._refusal(question, opened)) is not None:
                rejected.append(RejectedQuestion(question=question, reason=reason))
            else:
                asked.append(question)
        name = fingerprint([question.id for question in questions])
        partial = self._partial if isinstance(self._partial, str) else self._partial[questions[0].task]
        answers: list[EvaluationAnswer] = []
        try:
            results = self._answer(asked, opened) if asked else []
        except PromptMismatchError as error:
            return BlockCounts(fatal=str(error)).to_table()
        for question, result in zip(asked, results, strict=True):
            if isinstance(result, PromptRefusedError):
                rejected.append(RejectedQuestion(question=question, reason=str(result)))
            else:
                answers.append(self._read(question, result.outputs[0]))
        if answers:
            storage.write_part(partial, [answer.to_row() for answer in answers], ANSWERS_SCHEMA, name)
        if rejected:
            rows = [one.to_row() for one in rejected]
            storage.write_part(storage.join(partial, REJECTED_FOLDER), rows, REJECTED_SCHEMA, name)
        _record((answer.question for answer in answers), "answered")
        _record((one.question for one in rejected), "rejected")
        for answer in answers:
            metrics.EVALUATION_TOKENS.inc(answer.tokens, policy=answer.question.which)
        return BlockCounts(done=len(answers), rejected=len(rejected)).to_table()

    def _refusal(self, question: EvaluationQuestion, opened: Mapping[str, Image | UserError]) -> str | None:
        """Return why a question cannot be asked, or None."""
        try:
            self._data.check_prompt(question.prompt, len(question.images))
        except ValueError as error:
            return str(error)
        return next((str(opened[path]) for path in question.images if isinstance(opened[path], UserError)), None)

    def _answer(self, questions: Sequence[EvaluationQuestion], images: Mapping[str, Any]) -> list[Any]:
        """Answer questions to one policy; see ``generate``.

        Raises:
            PromptMismatchError: the engine has read another prompt.
        """
        from vllm import SamplingParams

        adapter = self._use(questions[0].which)
        shown = [[images[path] for path in question.images] for question in questions]
        prompts = [
            image_prompt(self._front_end.prompt_ids(question.prompt, len(some)), some)
            for question, some in zip(questions, shown, strict=True)
        ]
        ban = logit_bias(self._front_end.banned_token_ids)
        parameters = [
            SamplingParams(
                temperature=question.temperature,
                max_tokens=question.max_tokens,
                seed=question.seed,
                logit_bias=ban,
                detokenize=False,
            )
            for question in questions
        ]
        results = generate(self._engine, prompts, parameters, adapter=adapter)
        for question, some, result in zip(questions, shown, results, strict=True):
            if not isinstance(result, PromptRefusedError):
                row = row_name(question.prompt, question.images)
                self._check(row, question.prompt, some, result.prompt_token_ids)
        return results

    def _read(self, question: EvaluationQuestion, completion: Any) -> EvaluationAnswer:
        return EvaluationAnswer(
            question=question,
            text=self._front_end.decode(completion.token_ids),
            tokens=len(completion.token_ids),
            finish_reason=completion.finish_reason,
        )

    def _use(self, which: str) -> Any:
        """Switch the engine to this policy; returns the adapter that requests have to name, or None."""
        if not self._merged:
            from vllm.lora.request import LoRARequest

            return LoRARequest("aligned", 1, self._adapter) if which == AFTER else None
        if which != self._loaded:
            from fgaif_ray.vlm.merging import merged_weights

            reload_weights(self._engine, merged_weights(self._model, self._adapter) if which == AFTER else None)
            self._loaded = which
        return None


def _record(questions: Iterable[EvaluationQuestion], outcome: str) -> None:
    for (which, task), count in Counter((question.which, question.task) for question in questions).items():
        metrics.EVALUATION_ANSWERS.inc(count, policy=which, task=task, outcome=outcome)


def answer_questions(
    config: Config, blocks: list[pa.Table], adapter: str, rank: int, partial: str | Mapping[str, str]
) -> Iterator[BlockCounts]:
    """Answer every question; yields the counts of each finished block (see ``Generator``).

    Raises:
        UserError: the engine does not read prompts as the policy's processor makes them.
    """
    announce_engines("evaluate")
    dataset = ray.data.from_arrow([seal(block) for block in blocks]).map_batches(
        Generator,
        fn_constructor_kwargs={"config": config, "adapter": adapter, "rank": rank, "partial": partial},
        **ONE_BLOCK,
        compute=ActorPoolStrategy(size=1),
        **resources.generator(config).options(),
    )
    counts = until_fatal(map(BlockCounts.from_row, dataset.iter_rows()))
    yield from count_down("evaluate", sum(len(block) for block in blocks), counts)
