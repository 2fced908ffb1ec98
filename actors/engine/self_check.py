"""A model through an engine and through the learner, in one process and without Ray: what `fgaif check-model` does."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from PIL.Image import Image

from actors.engine.bans import logit_bias
from actors.engine.generate import PromptRefusedError, generate
from actors.engine.start import NO_ADAPTERS, image_prompt, reload_weights, start_engine
from fgaif_ray.config import EngineConfig, LoRAOptions
from fgaif_ray.errors import UserError
from fgaif_ray.rewards.model import RewardModel
from fgaif_ray.rewards.self_check import check_backbone, probe_items
from fgaif_ray.rl.policy import PolicyModel
from fgaif_ray.rl.self_check import EngineAgreement, compare, disturbed
from fgaif_ray.vlm.backbone import Backbone, load_backbone
from fgaif_ray.vlm.merging import merged_weights
from fgaif_ray.vlm.probes import (
    IMAGE_SIZES,
    PROBE_PROMPT,
    SelfCheckError,
    check_prompt_ids,
    image_tokens,
    probe_image,
)

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput

RANK: Final = 8
TOKENS: Final = 12
"""Of a response: enough for a mean, and cheap for a large model."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """A line of the table that `fgaif check-model` prints."""

    what: str
    found: str
    advice: str | None = None
    """What is wrong, and what to do; None where all is well."""
    failed: bool = False
    """Whether the model cannot be used as it is; without it the advice is enough."""


@dataclass(frozen=True, slots=True)
class SelfCheckOptions:
    """How a model is checked."""

    dtype: str = "auto"
    tolerance: float = 0.05
    """Largest mean difference of log-probabilities, nats."""
    lora: LoRAOptions = field(default_factory=lambda: LoRAOptions(rank=RANK, alpha=2 * RANK))
    engine: EngineConfig = field(default_factory=EngineConfig)


def check_model(model: str, options: SelfCheckOptions) -> Iterator[CheckResult]:
    """Check a model as policy and as backbone of rewards, one thing after the other.

    Raises:
        UserError: it is not downloaded, not supported or broken; nothing can be checked then.
    """
    backbone = load_backbone(model, options.dtype)
    front_end = backbone.front_end
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone.move_to(device)
    try:
        tokens = image_tokens(front_end)
    except ValueError as error:
        advice = f"{error}; set data.min_pixels and data.max_pixels"
        yield CheckResult("tokens of an image", "-", advice, failed=True)
        return
    for (width, height), count in tokens.items():
        yield CheckResult(f"tokens of an image of {width} x {height}", str(count))
    yield _reward_forward(backbone, options.lora)
    del backbone  # its adapters are the rewards'; a large model need not be there three times
    policy = PolicyModel(load_backbone(model, options.dtype), options.lora)
    policy.backbone.move_to(device)
    policy.to(device)
    images = _images_that_fit(tokens, options.engine.max_model_len)
    with _engine(model, options, len(policy.backbone.front_end.banned_token_ids)) as engine:
        yield from _engine_agrees(engine, policy, images, options)


def _engine_agrees(
    engine: "LLM", policy: PolicyModel, images: Sequence[Image], options: SelfCheckOptions
) -> Iterator[CheckResult]:
    lora_is_served = bool(engine.llm_engine.vllm_config.lora_config)
    outputs = _ask(engine, policy, images)
    problem = _prompt_problem(policy, images, outputs)
    equal = problem is None
    yield CheckResult("prompt ids of engine and learner", "equal" if equal else "differ", problem, not equal)
    yield _agreement("log-probabilities", policy, images, outputs, options, adapted=False)
    with disturbed(policy), tempfile.TemporaryDirectory(prefix="fgaif-check-") as folder:
        policy.save_policy(folder)
        if lora_is_served:
            from vllm.lora.request import LoRARequest

            outputs = _ask(engine, policy, images, LoRARequest("check", 1, folder))
            found = _agreement("the same with an adapter in the engine", policy, images, outputs, options, adapted=True)
            yield replace(found, failed=False)  # merged weights do without
        else:
            advice = "vLLM serves no adapters for this family: set align.rollout.sync=merged"
            yield CheckResult("the same with an adapter in the engine", "-", advice)
        path = policy.backbone.path
        reload_weights(engine, merged_weights(path, folder))
        outputs = _ask(engine, policy, images)
        yield _agreement("the same with merged weights", policy, images, outputs, options, adapted=True)


def _ask(engine: "LLM", policy: PolicyModel, images: Sequence[Image], adapter: Any = None) -> "list[RequestOutput]":
    from vllm import SamplingParams

    front_end = policy.backbone.front_end
    ban = logit_bias(front_end.banned_token_ids)
    parameters = [
        SamplingParams(seed=seed, max_tokens=TOKENS, logprobs=0, logit_bias=ban, detokenize=False)
        for seed in range(len(images))
    ]
    prompts = [image_prompt(front_end.prompt_ids(PROBE_PROMPT), [image]) for image in images]
    outputs: list[RequestOutput] = []
    for output in generate(engine, prompts, parameters, adapter=adapter):
        if isinstance(output, PromptRefusedError):
            raise UserError(f"The engine takes no prompt with an image: {output}.")
        outputs.append(output)
    return outputs


def _prompt_problem(policy: PolicyModel, images: Sequence[Image], outputs: "Sequence[RequestOutput]") -> str | None:
    try:
        for image, output in zip(images, outputs, strict=True):
            check_prompt_ids(policy.backbone.front_end, PROBE_PROMPT, image, output.prompt_token_ids or ())
    except SelfCheckError as error:
        return str(error)
    return None


def _agreement(
    what: str,
    policy: PolicyModel,
    images: Sequence[Image],
    outputs: "Sequence[RequestOutput]",
    options: SelfCheckOptions,
    *,
    adapted: bool,
) -> CheckResult:
    responses = [list(output.outputs[0].token_ids) for output in outputs]
    found: EngineAgreement = compare(policy, images, responses, [_log_probs(output) for output in outputs])
    said = f"differ by {found.difference:.1e} nats on average, {found.largest:.1e} at most"
    if adapted:
        said += f"; the adapter moves them by {found.effect:.1e}"
    try:
        found.check(options.tolerance, adapted)
    except SelfCheckError as error:
        return CheckResult(what, said, str(error), failed=True)
    return CheckResult(what, said)


def _log_probs(output: "RequestOutput") -> list[float]:
    completion: Any = output.outputs[0]
    return [entry[token].logprob for token, entry in zip(completion.token_ids, completion.logprobs, strict=True)]


def _reward_forward(backbone: Backbone, lora: LoRAOptions) -> CheckResult:
    """A reward model over the backbone gives each segment a distribution, and reads the image."""
    what = "verdicts of an untrained reward model"
    try:
        check_backbone(backbone)
    except SelfCheckError as error:
        return CheckResult(what, "-", f"{error}; choose another backbone of the rewards", failed=True)
    model = RewardModel(backbone)
    model.add("existence", lora, seed=0)
    model.to(backbone.device)
    first, second = model.score("existence", probe_items())
    moved = float(abs(first - second).max())
    return CheckResult(what, f"another image moves them by {moved:.1e}")


def _images_that_fit(tokens: dict[tuple[int, int], int], max_model_len: int) -> list[Image]:
    """Images of some sizes whose prompts leave room for a response."""
    room = max_model_len - TOKENS - len(PROBE_PROMPT)
    sizes = [size for size in IMAGE_SIZES if tokens[size] <= room]
    if not sizes:
        raise UserError(
            f"No image fits an engine of max_model_len {max_model_len}: the smallest takes {min(tokens.values())} "
            "tokens."
        )
    return [probe_image(*size, seed) for seed, size in enumerate(sizes[:4])]


@contextmanager
def _engine(model: str, options: SelfCheckOptions, banned: int) -> Iterator["LLM"]:
    """An engine that serves adapters, or where vLLM has none for the family, one that does not."""
    engine = _started(lambda: start_engine(model, options.engine, lora_rank=RANK, log_probs=1, banned=banned))
    yield engine if engine is not None else start_engine(model, options.engine, log_probs=1, banned=banned)


def _started(start: Callable[[], "LLM"]) -> "LLM | None":
    try:
        return start()
    except UserError as error:
        if NO_ADAPTERS not in str(error):
            raise
        return None
