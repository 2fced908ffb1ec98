"""Generation for evaluation: a Ray Data stage that answers with the model as it is and as it was aligned.

One engine serves both. The aligned policy reaches it the way it reached the rollout engines
(``align.rollout.sync``): as an adapter beside the base weights, or merged into them, which is faster on CPU.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import ray
from PIL.Image import Image
from ray.data import ActorPoolStrategy

from actors import metrics
from actors.engine.blocks import ONE_BLOCK, seal, unseal
from actors.engine.start import BAN, announce_engines, image_prompt, reload_weights, start_engine
from actors.metrics.count_down import count_down
from fgaif_ray import storage
from fgaif_ray.cluster import resources
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation import AFTER, BEFORE
from fgaif_ray.evaluation.rows import ANSWERS_SCHEMA, REJECTED_FOLDER, REJECTED_SCHEMA
from fgaif_ray.images import load_image
from fgaif_ray.pixel_budget import PixelBudget
from fgaif_ray.records import fingerprint
from fgaif_ray.vlm.front_end import load_front_end


class Generator:
    """A worker that answers the questions of a block and writes the block as a part of the stage.

    It takes sealed tables of ``QUESTIONS_SCHEMA`` with one ``which`` each and returns one row of counts: ``answered``,
    ``rejected`` (the image cannot be read), ``tokens``.

    Args:
        config: ``policy``, ``evaluate.engine``, ``align.rollout.sync``, ``run.seed`` and the pixel budget of ``data``.
        adapter: PEFT folder of the aligned policy, a path or URI.
        rank: rank of that adapter.
        partial: folder that gets the parts, or one for each task; the questions of a block then have one task.
    """

    def __init__(self, config: Config, adapter: str, rank: int, partial: str | Mapping[str, str]) -> None:
        self._model = config.policy.model
        self._budget = config.data.pixel_budget
        self._merged = config.align.rollout.sync == "merged"
        self._adapter = storage.local_copy(adapter)
        self._partial = partial
        self._front_end = load_front_end(self._model)
        self._engine = start_engine(
            self._model, config.evaluate.engine, lora_rank=None if self._merged else rank, seed=config.run.seed
        )
        self._loaded = BEFORE

    def __call__(self, sealed: pa.Table) -> pa.Table:
        questions = unseal(sealed)
        rows: list[dict[str, Any]] = []
        rejected: list[dict[str, Any]] = []
        opened: dict[str, Image | UserError] = {}
        for row in questions.to_pylist():
            path = row["image"]
            if path not in opened:
                opened[path] = _open(path, self._budget)
            if isinstance(found := opened[path], UserError):
                rejected.append(row | {"reason": str(found)})
            else:
                rows.append(row)
        name = fingerprint(questions.column("id").to_pylist())
        partial = self._partial if isinstance(self._partial, str) else self._partial[questions["task"][0].as_py()]
        if rejected:
            storage.write_part(storage.join(partial, REJECTED_FOLDER), rejected, REJECTED_SCHEMA, name)
        if rows:
            self._answer(rows, opened)
            storage.write_part(partial, rows, ANSWERS_SCHEMA, name)
        counts = {"answered": len(rows), "rejected": len(rejected), "tokens": sum(row["tokens"] for row in rows)}
        _record(rows, "answered")
        _record(rejected, "rejected")
        return pa.Table.from_pylist([counts])

    def _answer(self, rows: list[dict[str, Any]], images: Mapping[str, Any]) -> None:
        """Add ``response``, ``tokens`` and ``finish_reason`` to rows of one policy."""
        from vllm import SamplingParams

        adapter = self._use(rows[0]["which"])
        prompts = [image_prompt(self._front_end.prompt_ids(row["prompt"]), images[row["image"]]) for row in rows]
        ban = dict.fromkeys(self._front_end.banned_token_ids, BAN)
        parameters = [
            SamplingParams(
                temperature=row["temperature"],
                max_tokens=row["max_tokens"],
                seed=row["seed"],
                logit_bias=ban,
                detokenize=False,
            )
            for row in rows
        ]
        results = self._engine.generate(prompts, parameters, lora_request=adapter, use_tqdm=False)
        for row, result in zip(rows, results, strict=True):
            completion = result.outputs[0]
            row["response"] = self._front_end.decode(completion.token_ids)
            row["tokens"] = len(completion.token_ids)
            row["finish_reason"] = completion.finish_reason

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


def _record(rows: list[dict[str, Any]], outcome: str) -> None:
    for (which, task), count in Counter((row["which"], row["task"]) for row in rows).items():
        metrics.EVALUATION_ANSWERS.inc(count, policy=which, task=task, outcome=outcome)
    for row in rows:
        metrics.EVALUATION_TOKENS.inc(row.get("tokens", 0), policy=row["which"])


def _open(path: str, budget: PixelBudget) -> Image | UserError:
    try:
        return load_image(path, budget)
    except UserError as error:
        return error


def answer_questions(
    config: Config, blocks: list[pa.Table], adapter: str, rank: int, partial: str | Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Answer every question; yields the counts of each finished block (see ``Generator``)."""
    announce_engines("evaluate")
    dataset = ray.data.from_arrow([seal(block) for block in blocks]).map_batches(
        Generator,
        fn_constructor_kwargs={"config": config, "adapter": adapter, "rank": rank, "partial": partial},
        **ONE_BLOCK,
        compute=ActorPoolStrategy(size=1),
        **resources.generator(config).options(),
    )
    yield from count_down("evaluate", sum(len(block) for block in blocks), dataset.iter_rows())
