"""Sampling of responses: a Ray Data stage around a vLLM engine."""

import hashlib
from typing import Any, Final

import pyarrow as pa

from actors import metrics
from actors.engine.blocks import unseal
from actors.engine.start import BAN, image_prompt, start_engine
from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.images import decode_image
from fgaif_ray.records import RESPONSES_SCHEMA, fingerprint, sample_identity
from fgaif_ray.vlm.front_end import load_front_end

TASK_SCHEMA: Final = pa.schema([pa.field("image", pa.string()), pa.field("prompt", pa.string())])
REJECTED_IMAGES_SCHEMA: Final = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in ("image", "prompt", "reason")]
)
REJECTED_FOLDER: Final = "rejected"
"""Folder inside the stage that holds the parts of rejected images."""


def sampling_settings(config: Config) -> dict[str, Any]:
    """Settings that a response depends on beside image, prompt and model; they are part of its sample id."""
    sample = config.sample
    return {
        "temperature": sample.temperature,
        "top_p": sample.top_p,
        "max_tokens": sample.max_tokens,
        "seed": config.run.seed,
        **config.data.pixel_limits,
    }


def request_seed(run_seed: int, sample_id: str) -> int:
    """Return the seed of one request: the same sample gives the same response in any batch and order."""
    return int.from_bytes(hashlib.sha256(f"{run_seed}/{sample_id}".encode()).digest()[:4])


class Sampler:
    """A worker that samples a response to every image of a block and writes the block as a part of the stage.

    It takes sealed tables of ``TASK_SCHEMA`` and returns one row of counts: ``sampled``, ``rejected``, ``tokens``.
    """

    def __init__(self, config: Config, partial: str) -> None:
        self._config = config
        self._partial = partial
        self._front_end = load_front_end(config.policy.model)
        self._engine = start_engine(config.policy.model, config.sample.engine, seed=config.run.seed)

    def __call__(self, sealed: pa.Table) -> pa.Table:
        tasks = unseal(sealed)
        rows: list[dict[str, Any]] = []
        images = []
        rejected: list[dict[str, Any]] = []
        for task in tasks.to_pylist():
            try:
                self._front_end.check_prompt(task["prompt"], self._config.sample.engine.max_model_len)
                data = storage.read_bytes(task["image"])
                images.append(decode_image(data, self._config.data.pixel_budget))
            except (OSError, ValueError) as error:
                rejected.append({"image": task["image"], "prompt": task["prompt"], "reason": str(error)})
                continue
            rows.append(self._row(task, hashlib.sha256(data).hexdigest()))
        self._sample(rows, images)
        name = fingerprint(tasks.column("image").to_pylist(), tasks.column("prompt").to_pylist())
        if rejected:
            folder = storage.join(self._partial, REJECTED_FOLDER)
            storage.write_part(folder, rejected, REJECTED_IMAGES_SCHEMA, name)
        if rows:
            storage.write_part(self._partial, rows, RESPONSES_SCHEMA, name)
        counts = {
            "sampled": len(rows),
            "rejected": len(rejected),
            "tokens": sum(len(row["token_ids"]) for row in rows),
        }
        metrics.SAMPLED_RESPONSES.inc(counts["sampled"], outcome="sampled")
        metrics.SAMPLED_RESPONSES.inc(counts["rejected"], outcome="rejected")
        metrics.SAMPLED_TOKENS.inc(counts["tokens"])
        return pa.Table.from_pylist([counts])

    def _row(self, task: dict[str, Any], image_sha256: str) -> dict[str, Any]:
        model = self._config.policy.model
        settings = sampling_settings(self._config)
        return {
            "sample_id": sample_identity(image_sha256, task["prompt"], model, settings),
            "image": task["image"],
            "image_sha256": image_sha256,
            "prompt": task["prompt"],
            "model": model,
        }

    def _sample(self, rows: list[dict[str, Any]], images: list[Any]) -> None:
        """Add ``response``, ``token_ids`` and ``finish_reason`` to rows."""
        from vllm import SamplingParams

        sample = self._config.sample
        prompts = [
            image_prompt(self._front_end.prompt_ids(row["prompt"]), image)
            for row, image in zip(rows, images, strict=True)
        ]
        ban = dict.fromkeys(self._front_end.banned_token_ids, BAN)
        parameters = [
            SamplingParams(
                temperature=sample.temperature,
                top_p=sample.top_p,
                max_tokens=sample.max_tokens,
                seed=request_seed(self._config.run.seed, row["sample_id"]),
                logit_bias=ban,
                detokenize=False,
            )
            for row in rows
        ]
        for row, result in zip(rows, self._engine.generate(prompts, parameters, use_tqdm=False), strict=True):
            completion = result.outputs[0]
            row["token_ids"] = list(completion.token_ids)
            row["response"] = self._front_end.decode(row["token_ids"])
            row["finish_reason"] = completion.finish_reason
