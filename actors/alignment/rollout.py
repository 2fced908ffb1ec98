"""Rollout workers: vLLM engines that sample from the newest policy.

The learner hands over a `PolicyVersion` with every batch. A worker that serves another one loads it first, so a worker
that Ray has restarted, and knows nothing, samples from the right weights all the same. Each version has a name of its
own inside the engine: the prefix cache tells adapters apart by name, so no version is mistaken for another.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import ray
from ray.actor import ActorHandle

from actors import metrics
from actors.cluster.placement import spread
from actors.engine.bans import logit_bias
from actors.engine.generate import PromptRefusedError, answer_each
from actors.engine.shared import SharedEngine
from actors.engine.start import announce_engines, image_prompt, reload_weights, start_engine
from fgaif_ray import storage
from fgaif_ray.cluster import resources
from fgaif_ray.config import Config, RolloutConfig
from fgaif_ray.errors import UserError
from fgaif_ray.images import open_images

if TYPE_CHECKING:
    from PIL.Image import Image
    from vllm import RequestOutput

MAX_RESTARTS: Final = 5


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    """A published policy adapter.

    Example: ``PolicyVersion(3, "runs/shapes/policy.partial/adapters/v3-9c1f03d2")``
    """

    number: int
    """Updates that the policy has gone through."""
    folder: str
    """PEFT folder, a path or URI that every rollout worker can read; its last component is unique in the run."""


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """One prompt to answer."""

    prompt_token_ids: tuple[int, ...]
    """``[prompt_tokens]`` with each image as one token."""
    images: tuple[str, ...]
    """Paths or URIs, in the order of their places. The worker opens them: images of a batch are gigabytes, and each
    message would hold them once more."""
    seed: int
    """Seed that decides the response, whatever else is in the batch."""
    greedy: bool = False
    """Whether the likeliest token is taken each time; its log-probabilities are then nothing to learn from."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """A sampled response."""

    token_ids: tuple[int, ...]
    """``[response_tokens]``, with the end-of-sequence token where it was sampled."""
    log_probs: tuple[float, ...]
    """``[response_tokens]`` under the distribution that was sampled from."""
    finish_reason: str
    """``stop`` or ``length``."""
    policy_version: int
    prompt_token_ids: tuple[int, ...]
    """``[prompt_tokens]`` with the images expanded, as the engine read them."""


@dataclass(frozen=True, slots=True)
class RefusedRollout:
    """There is no response, since the engine does not take the prompt with its images."""

    reason: str


def sampling_options(rollout: RolloutConfig, banned: Sequence[int]) -> dict[str, Any]:
    """Return the arguments of ``vllm.SamplingParams`` for every response, all but its seed.

    Args:
        rollout: temperature and length.
        banned: token ids that must never be sampled.
    """
    return {
        "temperature": rollout.temperature,
        "top_p": 1.0,
        "max_tokens": rollout.max_tokens,
        "logprobs": 0,
        "logit_bias": logit_bias(banned),
        "detokenize": False,
    }


class RolloutWorker:
    """A rollout worker with one engine; calls of several learner workers are answered together."""

    def __init__(self, config: Config, banned: Sequence[int]) -> None:
        rollout = config.align.rollout
        self._merged = rollout.sync == "merged"
        self._model = config.policy.model
        self._budget = config.data.pixel_budget
        self._options = sampling_options(rollout, banned)
        rank = None if self._merged else config.align.lora.rank
        self._engine = start_engine(
            self._model,
            rollout.engine,
            lora_rank=rank,
            seed=config.run.seed,
            log_probs=1,
            images=config.data.images_per_prompt,
            banned=len(banned),
        )
        self._shared = SharedEngine(self._engine, self._load)
        self._adapter: Any = None
        self._slot = 1

    def serve(self, version: PolicyVersion) -> float:
        """Serve a version from now on; returns the seconds it took."""
        started = time.monotonic()
        self._shared.serve(version)
        return time.monotonic() - started

    def generate(self, requests: Sequence[RolloutRequest], version: PolicyVersion) -> list[Rollout | RefusedRollout]:
        """Sample one response per request, in order, from the given version."""
        opened = open_images((path for request in requests for path in request.images), self._budget)
        shown = [_shown(request, opened) for request in requests]
        pairs = zip(requests, shown, strict=True)
        asked = [(request, images) for request, images in pairs if not isinstance(images, RefusedRollout)]
        answers = iter(self._answer(asked, version))
        return [images if isinstance(images, RefusedRollout) else next(answers) for images in shown]

    def _answer(
        self, asked: "Sequence[tuple[RolloutRequest, list[Image]]]", version: PolicyVersion
    ) -> list[Rollout | RefusedRollout]:
        """Sample one response per request, whose images are open."""
        from vllm import SamplingParams

        prompts = [image_prompt(request.prompt_token_ids, images) for request, images in asked]
        greedy = self._options | {"temperature": 0.0}
        parameters = [
            SamplingParams(seed=request.seed, **(greedy if request.greedy else self._options)) for request, _ in asked
        ]
        began = time.monotonic()
        results = answer_each(lambda some, own: self._shared.generate(some, own, version), prompts, parameters)
        found = [_rollout(result, version.number) for result in results]
        rollouts = [one for one in found if isinstance(one, Rollout)]
        metrics.ROLLOUT_DURATION.observe(time.monotonic() - began)
        metrics.ROLLOUT_RESPONSES.inc(len(rollouts))
        metrics.ROLLOUT_TOKENS.inc(sum(len(rollout.token_ids) for rollout in rollouts))
        return found

    def _load(self, version: PolicyVersion) -> Any:
        """Load a version; returns its LoRA request, or None where weights are merged."""
        from fgaif_ray.vlm.merging import merged_weights

        started = time.monotonic()
        folder = storage.local_copy(version.folder)
        if self._merged:
            reload_weights(self._engine, merged_weights(self._model, folder))
        else:
            self._load_adapter(Path(version.folder).name, folder)
        metrics.ROLLOUT_POLICY_VERSION.set(version.number)
        metrics.ROLLOUT_SYNC_DURATION.observe(time.monotonic() - started)
        return self._adapter

    def _load_adapter(self, name: str, folder: str) -> None:
        from vllm.lora.request import LoRARequest

        previous = self._adapter
        adapter = LoRARequest(f"policy-{name}", self._slot, folder)
        if not self._engine.llm_engine.add_lora(adapter):
            raise RuntimeError(f"the rollout engine did not load {folder}")
        self._adapter, self._slot = adapter, 3 - self._slot  # slots 1 and 2 take turns
        if previous is not None:
            self._engine.llm_engine.remove_lora(previous.lora_int_id)


@contextmanager
def rollout_workers(config: Config, banned: Sequence[int]) -> Iterator[list[ActorHandle[Any]]]:
    """The group, for the time of the block; Ray restarts a worker that dies and repeats the call it died in.

    Args:
        config: `align.rollout` and `policy`.
        banned: token ids that must never be sampled.
    """
    options = {
        "max_restarts": MAX_RESTARTS,
        "max_task_retries": MAX_RESTARTS,
        "max_concurrency": config.align.most_workers + 1,  # a call of each learner worker, and the first one's `serve`
    }
    with spread(resources.rollout_worker(config)) as places:
        announce_engines("align", len(places))
        worker: Any = ray.remote(RolloutWorker)
        workers = [worker.options(**options, **place).remote(config, tuple(banned)) for place in places]
        try:
            yield workers
        finally:
            for one in workers:
                ray.kill(one)


def sample(
    workers: Sequence[ActorHandle[Any]], requests: Sequence[RolloutRequest], version: PolicyVersion
) -> list[Rollout | RefusedRollout]:
    """Spread requests over the workers and wait for all responses, in order."""
    share = -(-len(requests) // len(workers))
    parts = [list(requests[start : start + share]) for start in range(0, len(requests), share)]
    calls: list[Any] = [worker.generate.remote(part, version) for worker, part in zip(workers, parts, strict=False)]
    answers: list[list[Rollout | RefusedRollout]] = ray.get(calls)
    return [rollout for answer in answers for rollout in answer]


def _shown(request: RolloutRequest, opened: "Mapping[str, Image | UserError]") -> "list[Image] | RefusedRollout":
    """The images of a request, or why it cannot be asked."""
    images: list[Image] = []
    for path in request.images:
        image = opened[path]
        if isinstance(image, UserError):
            return RefusedRollout(str(image))
        images.append(image)
    return images


def _rollout(result: "RequestOutput | PromptRefusedError", version: int) -> Rollout | RefusedRollout:
    if isinstance(result, PromptRefusedError):
        return RefusedRollout(str(result))
    completion: Any = result.outputs[0]
    ids = tuple(completion.token_ids)
    log_probs = tuple(entry[token].logprob for token, entry in zip(ids, completion.logprobs, strict=True))
    return Rollout(ids, log_probs, completion.finish_reason, version, tuple(result.prompt_token_ids or ()))
