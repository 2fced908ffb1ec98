"""Sampling of responses: a Ray Data stage around a vLLM engine."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from PIL.Image import Image

from actors import metrics
from actors.engine.bans import logit_bias
from actors.engine.block_counts import BlockCounts
from actors.engine.blocks import unseal
from actors.engine.generate import PromptRefusedError, generate
from actors.engine.start import image_prompt, start_engine
from actors.sampling.rows import REJECTED_FOLDER, REJECTED_IMAGES_SCHEMA, RejectedImage, SamplingTask
from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.images import decode_image, read_image_file
from fgaif_ray.records import (
    RESPONSES_SCHEMA,
    Response,
    fingerprint,
    image_fields,
    images_digest,
    images_key,
    sample_identity,
)
from fgaif_ray.storage.stages import reading_key
from fgaif_ray.vlm.front_end import load_front_end
from fgaif_ray.vlm.prompt_check import PromptCheck, PromptMismatchError, row_name


def sampling_settings(config: Config) -> dict[str, Any]:
    """Settings that a response depends on beside image, prompt and model; they are part of its sample id."""
    sample = config.sample
    return {
        "temperature": sample.temperature,
        "top_p": sample.top_p,
        "max_tokens": sample.max_tokens,
        "seed": config.run.seed,
        **{name: value for part in reading_key(config) for name, value in part.items()},
    }


def request_seed(run_seed: int, sample_id: str) -> int:
    """Return the seed of one request: the same sample gives the same response in any batch and order."""
    return int.from_bytes(hashlib.sha256(f"{run_seed}/{sample_id}".encode()).digest()[:4])


@dataclass(frozen=True, slots=True)
class _Readable:
    """A task whose images could be read."""

    task: SamplingTask
    images: tuple[Image, ...]
    image_sha256: str
    sample_id: str


class Sampler:
    """A worker that samples a response to every task of a block and writes the block as a part of the stage.

    It takes sealed tables of ``TASK_SCHEMA`` and returns the table of ``BlockCounts``.
    """

    def __init__(self, config: Config, partial: str) -> None:
        self._config = config
        self._partial = partial
        self._front_end = load_front_end(config.policy.model, config.data.chat_template_kwargs)
        self._engine = start_engine(
            config.policy.model,
            config.sample.engine,
            seed=config.run.seed,
            images=config.data.images_per_prompt,
            banned=len(self._front_end.banned_token_ids),
        )
        self._check = PromptCheck(self._front_end)

    def __call__(self, sealed: pa.Table) -> pa.Table:
        tasks = [SamplingTask.from_row(row) for row in unseal(sealed).to_pylist()]
        readable: list[_Readable] = []
        rejected: list[RejectedImage] = []
        for task in tasks:
            try:
                readable.append(self._read(task))
            except (OSError, ValueError) as error:
                rejected.append(_rejected(task, error))
        responses: list[Response] = []
        try:
            answers = self._sample(readable)
        except PromptMismatchError as error:
            return BlockCounts(fatal=str(error)).to_table()
        for asked, answer in zip(readable, answers, strict=True):
            if isinstance(answer, PromptRefusedError):
                rejected.append(_rejected(asked.task, answer))
            else:
                responses.append(self._response(asked, answer.outputs[0]))
        name = fingerprint([images_key(task.images) for task in tasks], [task.prompt for task in tasks])
        if rejected:
            rows = [one.to_row() for one in rejected]
            storage.write_part(storage.join(self._partial, REJECTED_FOLDER), rows, REJECTED_IMAGES_SCHEMA, name)
        if responses:
            rows = [response.to_row() for response in responses]
            storage.write_part(self._partial, rows, RESPONSES_SCHEMA, name)
        metrics.SAMPLED_RESPONSES.inc(len(responses), outcome="sampled")
        metrics.SAMPLED_RESPONSES.inc(len(rejected), outcome="rejected")
        metrics.SAMPLED_TOKENS.inc(sum(len(response.token_ids or ()) for response in responses))
        return BlockCounts(done=len(responses), rejected=len(rejected)).to_table()

    def _read(self, task: SamplingTask) -> _Readable:
        """Read the images of a task.

        Raises:
            OSError or ValueError: the prompt cannot be asked, or an image cannot be read.
        """
        data = self._config.data
        data.check_prompt(task.prompt, len(task.images))
        self._front_end.prompt_ids(task.prompt, len(task.images))
        files = [read_image_file(image) for image in task.images]
        images = tuple(decode_image(file, data.pixel_budget) for file in files)
        digest = images_digest([hashlib.sha256(file).hexdigest() for file in files])
        settings = sampling_settings(self._config)
        identity = sample_identity(digest, task.prompt, self._config.policy.model, settings)
        return _Readable(task, images, digest, identity)

    def _sample(self, readable: Sequence[_Readable]) -> list[Any]:
        """Sample a response to each task; see ``generate``.

        Raises:
            PromptMismatchError: the engine has read another prompt.
        """
        from vllm import SamplingParams

        sample = self._config.sample
        prompts = [
            image_prompt(self._front_end.prompt_ids(one.task.prompt, len(one.images)), one.images) for one in readable
        ]
        ban = logit_bias(self._front_end.banned_token_ids)
        parameters = [
            SamplingParams(
                temperature=sample.temperature,
                top_p=sample.top_p,
                max_tokens=sample.max_tokens,
                seed=request_seed(self._config.run.seed, one.sample_id),
                logit_bias=ban,
                detokenize=False,
            )
            for one in readable
        ]
        answers = generate(self._engine, prompts, parameters)
        for one, answer in zip(readable, answers, strict=True):
            if not isinstance(answer, PromptRefusedError):
                task = one.task
                self._check(row_name(task.prompt, task.images), task.prompt, one.images, answer.prompt_token_ids)
        return answers

    def _response(self, asked: _Readable, completion: Any) -> Response:
        token_ids = tuple(completion.token_ids)
        return Response(
            sample_id=asked.sample_id,
            **image_fields(asked.task.images),
            image_sha256=asked.image_sha256,
            prompt=asked.task.prompt,
            text=self._front_end.decode(token_ids),
            token_ids=token_ids,
            finish_reason=completion.finish_reason,
            model=self._config.policy.model,
        )


def _rejected(task: SamplingTask, error: Exception) -> RejectedImage:
    return RejectedImage(**image_fields(task.images), prompt=task.prompt, reason=str(error))
