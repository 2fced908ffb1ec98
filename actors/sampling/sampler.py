"""Sampling of responses: a Ray Data stage around a vLLM engine."""

import hashlib
import random
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
from fgaif_ray.segments import ENGLISH, segment_token_ends, split_segments
from fgaif_ray.storage.stage_settings import reading_key
from fgaif_ray.token_offsets import Decoder, token_offsets
from fgaif_ray.vlm.front_end import load_front_end
from fgaif_ray.vlm.prompt_check import PromptCheck, PromptMismatchError, row_name


def sampling_settings(config: Config, number: int = 0) -> dict[str, Any]:
    """Settings that a response depends on beside image, prompt and model; they are part of its sample id.

    Args:
        config: the configuration.
        number: of the response among those to the same image and prompt. The first is the same however many follow.
    """
    sample = config.sample
    further = {"number": number, "shared_prefixes": sample.shared_prefixes} if number else {}
    return {
        "temperature": sample.temperature,
        "top_p": sample.top_p,
        "max_tokens": sample.max_tokens,
        "seed": config.run.seed,
        **further,
        **{name: value for part in reading_key(config) for name, value in part.items()},
    }


def request_seed(run_seed: int, sample_id: str) -> int:
    """Return the seed of one request: the same sample gives the same response in any batch and order."""
    return int.from_bytes(hashlib.sha256(f"{run_seed}/{sample_id}".encode()).digest()[:4])


def shared_prefix(decoder: Decoder, token_ids: Sequence[int], seed: int, language: str = ENGLISH) -> tuple[int, ...]:
    """Return the ids of a response's first segments, up to a segment drawn at random; at least the last is left out.

    What the policy says after them is its own again, so that two continuations of one context can be compared.

    Args:
        decoder: of the ids.
        token_ids: of the response, as sampled.
        seed: decides how many segments are kept; none is as likely as any other number.
        language: of the response, see ``split_segments``.
    """
    text = decoder.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    spans = split_segments(text, language)
    kept = random.Random(seed).randrange(len(spans)) if spans else 0
    if not kept:
        return ()
    ends = segment_token_ends(spans[:kept], token_offsets(decoder, token_ids), text)
    return tuple(token_ids[: ends[-1] + 1])


@dataclass(frozen=True, slots=True)
class _Readable:
    """A task whose images could be read."""

    task: SamplingTask
    images: tuple[Image, ...]
    image_sha256: str


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A response that is to be sampled."""

    asked: _Readable
    sample_id: str
    seed: int
    prefix: tuple[int, ...] = ()
    """``[prefix_tokens]`` ids that it begins with."""


class Sampler:
    """A worker that samples the responses to every task of a block and writes the block as a part of the stage.

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
                rejected.append(self._rejected(task, error))
        try:
            responses, refused = self._sample_all(readable)
        except PromptMismatchError as error:
            return BlockCounts(fatal=str(error)).to_table()
        rejected += refused
        name = fingerprint([images_key(task.images) for task in tasks], [task.prompt for task in tasks])
        if rejected:
            rows = [one.to_row() for one in rejected]
            storage.write_part(storage.join(self._partial, REJECTED_FOLDER), rows, REJECTED_IMAGES_SCHEMA, name)
        if responses:
            rows = [response.to_row() for response in responses]
            storage.write_part(self._partial, rows, RESPONSES_SCHEMA, name)
        metrics.SAMPLED_RESPONSES.inc(len(responses), outcome="sampled")
        missing = sum(one.responses for one in rejected)
        metrics.SAMPLED_RESPONSES.inc(missing, outcome="rejected")
        metrics.SAMPLED_TOKENS.inc(sum(len(response.token_ids or ()) for response in responses))
        return BlockCounts(done=len(responses), rejected=missing).to_table()

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
        return _Readable(task, images, images_digest([hashlib.sha256(file).hexdigest() for file in files]))

    def _sample_all(self, readable: Sequence[_Readable]) -> tuple[list[Response], list[RejectedImage]]:
        """Sample all responses to tasks; of a task that the engine refuses there is none.

        Raises:
            PromptMismatchError: the engine has read another prompt.
        """
        count, shared = self._config.sample.samples_per_prompt, self._config.sample.shared_prefixes
        responses: list[list[Response]] = [[] for _ in readable]
        refused: dict[int, RejectedImage] = {}
        # Those that share the first one's beginning have to wait for it.
        for numbers in (range(1), range(1, count)) if shared else (range(count),):
            wanted = [
                (place, self._wanted(asked, number, responses[place][0] if responses[place] else None))
                for place, asked in enumerate(readable)
                if place not in refused
                for number in numbers
            ]
            for (place, one), answer in zip(wanted, self._sample([one for _, one in wanted]), strict=True):
                if isinstance(answer, PromptRefusedError):
                    refused[place] = self._rejected(one.asked.task, answer)
                else:
                    responses[place].append(self._response(one, answer.outputs[0]))
        kept = [one for place, some in enumerate(responses) if place not in refused for one in some]
        return kept, list(refused.values())

    def _wanted(self, asked: _Readable, number: int, first: Response | None) -> _Wanted:
        """The response of that number to a task; ``first`` is the one whose beginning it may share."""
        config = self._config
        settings = sampling_settings(config, number)
        identity = sample_identity(asked.image_sha256, asked.task.prompt, config.policy.model, settings)
        seed = request_seed(config.run.seed, identity)
        if first is None or first.token_ids is None:
            return _Wanted(asked, identity, seed)
        return _Wanted(
            asked,
            identity,
            seed,
            shared_prefix(self._front_end.tokenizer, first.token_ids, seed, self._config.data.language),
        )

    def _sample(self, wanted: Sequence[_Wanted]) -> list[Any]:
        """Sample responses; see ``generate``.

        Raises:
            PromptMismatchError: the engine has read another prompt.
        """
        from vllm import SamplingParams

        sample = self._config.sample
        prompts = [
            image_prompt(
                (*self._front_end.prompt_ids(one.asked.task.prompt, len(one.asked.images)), *one.prefix),
                one.asked.images,
            )
            for one in wanted
        ]
        ban = logit_bias(self._front_end.banned_token_ids)
        parameters = [
            SamplingParams(
                temperature=sample.temperature,
                top_p=sample.top_p,
                max_tokens=sample.max_tokens - len(one.prefix),
                seed=one.seed,
                logit_bias=ban,
                detokenize=False,
            )
            for one in wanted
        ]
        answers = generate(self._engine, prompts, parameters)
        for one, answer in zip(wanted, answers, strict=True):
            if not isinstance(answer, PromptRefusedError):
                task, read = one.asked.task, answer.prompt_token_ids or []
                prompt = read[: len(read) - len(one.prefix)]
                self._check(row_name(task.prompt, task.images), task.prompt, one.asked.images, prompt)
        return answers

    def _response(self, wanted: _Wanted, completion: Any) -> Response:
        token_ids, asked = (*wanted.prefix, *completion.token_ids), wanted.asked
        return Response(
            sample_id=wanted.sample_id,
            **image_fields(asked.task.images),
            image_sha256=asked.image_sha256,
            prompt=asked.task.prompt,
            text=self._front_end.decode(token_ids),
            token_ids=token_ids,
            finish_reason=completion.finish_reason,
            model=self._config.policy.model,
        )

    def _rejected(self, task: SamplingTask, error: Exception) -> RejectedImage:
        return RejectedImage(
            **image_fields(task.images),
            prompt=task.prompt,
            reason=str(error),
            responses=self._config.sample.samples_per_prompt,
        )
