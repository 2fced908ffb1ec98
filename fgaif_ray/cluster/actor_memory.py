"""What each actor that holds a model keeps on its device, part by part, at its largest.

Learners and reward models are counted by running `PolicyModel` and `RewardModel` on a backbone without content
(``fgaif_ray.cluster.dry_run``), with the longest responses that the configuration allows; vLLM engines as
`actors.engine.start` starts them, which reserve what they are told. Prompts are taken to have `PROMPT_TOKENS` beside
their images, of which there are as many as `data.images_per_prompt` allows.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

import torch

from fgaif_ray.cluster.dry_run import PROMPT_TOKENS, MetaBackbone, PassMemory, dry_run, meta_rows, phrased, tensor_bytes
from fgaif_ray.cluster.resources import LORA_RANKS, LORA_SLOTS, ResourceRequest, reward_scorers
from fgaif_ray.config import Config, EngineConfig, LoRAOptions
from fgaif_ray.rewards.encoding import EncodedItem
from fgaif_ray.rewards.kinds import RewardTask, reward_tasks
from fgaif_ray.rewards.model import SCORING_BATCH, RewardModel
from fgaif_ray.rl.algorithms import ALGORITHMS
from fgaif_ray.rl.micro_batches import ESTIMATE_FACTOR
from fgaif_ray.rl.policy import EncodedRows, PolicyModel

GIB: Final = 1 << 30
FLOAT32: Final = 4
RUNTIME: Final = 1 * GIB
"""About what a CUDA context, its libraries and captured graphs take beside tensors: an estimate, not counted."""
SEGMENT_TOKENS: Final = 8
"""Tokens of the shortest usual segment: a reward model reads a separator more after each."""
ENGINE_TOKENS: Final = 8192
"""Tokens of vLLM's largest forward pass, its default on most GPUs."""
ENGINE_BLOCK: Final = 16
ROW_BYTES: Final = 8 + 12 * FLOAT32
"""Of a token in a learner's batch: its id, and as many float32 as there are rewards, estimates, advantages and such."""
SERVER: Final = "vLLM server"
"""What a job starts beside Ray on the driver's machine; no actor, and Ray does not know of it."""


class Part(NamedTuple):
    """Something that lies on a device."""

    what: str
    size: int | None
    """Bytes; None where they are not known before it runs."""


class BatchSetting(NamedTuple):
    """The setting that decides how many rows go through a model together."""

    key: str
    rows: int
    """Of the largest pass."""
    each: int = 1
    """What a row adds to the setting."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """All that an actor keeps on its device."""

    parts: Sequence[Part]
    """The weights of its model first."""
    batch: BatchSetting | None = None
    """None for an engine, which decides by itself."""
    shortage: str = ""
    """Why it could not start, though its parts may fit."""
    claim: int = 0
    """Bytes that must be free when it starts: vLLM looks for its share of the GPU, even where ``kv_cache_gib`` says how
    much it takes."""

    @property
    def total(self) -> int:
        """Bytes of the parts that are known."""
        return sum(part.size or 0 for part in self.parts)

    @property
    def is_whole(self) -> bool:
        """Whether all parts are known."""
        return all(part.size is not None for part in self.parts)


def footprint(config: Config, request: ResourceRequest, gpu: int | None) -> Footprint | None:
    """What an actor of a request keeps on its device; None for actors without a model.

    Args:
        config: the configuration.
        request: one of ``fgaif_ray.cluster.resources.stage_requests``.
        gpu: bytes of the GPU that it is on, as far as it is known.

    Raises:
        UncountableModelError: its model is not here, or not to be counted.
    """
    section = functools.reduce(getattr, request.section.split("."), config)
    scorers = reward_scorers(config)
    if request.actor == "Learner":
        found = _learner(config)
    elif request.actor == "RewardTrainer":
        found = _reward_trainer(config)
    elif request.actor in scorers:
        found = _reward_replica(config, scorers[request.actor])
    elif isinstance(section, EngineConfig):
        found = _engine(config, request, section, gpu)
    else:
        return None
    if not request.num_gpus:
        return found
    return replace(found, parts=[*found.parts, Part("CUDA context and libraries, about", RUNTIME)])


@functools.lru_cache(maxsize=8)
def policy_model(run: MetaBackbone, lora: LoRAOptions, critic: bool = True, checkpointing: bool = False) -> PolicyModel:
    """A learner's model without content, with gradients of all that it trains.

    Raises:
        UncountableModelError: the adapters do not go on the decoder.
    """
    with phrased(f"{run.path} cannot be built with adapters"), torch.device("meta"):
        model = PolicyModel(run.copy(), lora, critic=critic, activation_checkpointing=checkpointing)
    for parameter in (*model.policy_parameters().values(), *model.critic_parameters().values()):
        parameter.grad = torch.empty_like(parameter)
    return model


@functools.lru_cache(maxsize=64)
def policy_pass(
    model: PolicyModel,
    role: Literal["policy", "critic"],
    rows: int,
    tokens: int,
    response: int,
    training: bool = True,
    with_entropy: bool = False,
) -> PassMemory:
    """Run the policy or the critic over equally long rows, for an update or, without ``training``, for estimates.

    Args:
        model: from ``policy_model``.
        role: who reads them.
        rows: of a micro-batch.
        tokens: of a row, image tokens among them.
        response: tokens of the response in it.
        training: whether a backward pass follows.
        with_entropy: whether the policy's entropies are computed, too.
    """
    inputs = meta_rows(rows, tokens)
    encoded = EncodedRows(inputs, inputs.lengths, inputs.lengths, (), torch.empty(0), response)
    with torch.set_grad_enabled(training), run_of(model).counted(model) as made:
        if role == "critic":
            result = model.values(encoded)
        else:
            found = model.log_probs(encoded, with_entropy=with_entropy)
            result = found.log_probs if found.entropies is None else found.log_probs + found.entropies
        if training:
            result.sum().backward()
    return PassMemory(made.kept, made.peak)


@functools.lru_cache(maxsize=8)
def reward_model(run: MetaBackbone, lora: LoRAOptions, tasks: tuple[RewardTask, ...]) -> RewardModel:
    """Reward models without content, with gradients of the adapters and heads of all tasks.

    Raises:
        UncountableModelError: the adapters do not go on the decoder.
    """
    with phrased(f"{run.path} cannot be built with adapters"), torch.device("meta"):
        model = RewardModel(run.copy())
        for task in tasks:
            model.add_adapter(task.name, task.heads, lora, 0, task.granularity)
    for parameter in (one for task in tasks for one in model.trainable_parameters(task.heads[0])):
        parameter.grad = torch.empty_like(parameter)
    return model


@functools.lru_cache(maxsize=64)
def reward_pass(
    model: RewardModel, task: RewardTask, rows: int, tokens: int, segments: int, images: int, training: bool = True
) -> PassMemory:
    """Run the adapter of a task over equally long responses, whose images are read just before; see ``policy_pass``."""
    run = run_of(model)
    prompt, features = run.prompt(images), run.image_pass(rows, images)
    item = EncodedItem(prompt, [0] * (tokens - len(prompt)), [0] * segments)
    with torch.set_grad_enabled(training), run.counted(model) as made:
        logits = model.logits_of(task.heads, [item] * rows, ())
        if training:
            torch.cat([*logits.values()]).sum().backward()
    return PassMemory(made.kept, max(features.peak, features.kept + made.peak))


def run_of(model: PolicyModel | RewardModel) -> MetaBackbone:
    """The backbone of a model without content."""
    assert isinstance(model.backbone, MetaBackbone)
    return model.backbone


def _weights(run: MetaBackbone, quantisation: str = "none", shards: int = 1) -> Part:
    held = "4 bits" if quantisation == "4bit" else run.dtype
    text = f"weights of {run.path}: {run.parameters:,} in {held}" + (f", 1/{shards} of them" if shards > 1 else "")
    return Part(text, run.weight_bytes(quantisation, shards))


def _longest(run: MetaBackbone, images: int, responses: int, most: int) -> int:
    """Tokens of the longest sequence: all that are allowed where those of an image are not known."""
    length = most if run.image_tokens is None else PROMPT_TOKENS + images * run.image_tokens + responses
    return min(length, most, run.positions)


def _pass_parts(rows: str, *passes: PassMemory) -> list[Part]:
    """What is enough for each of several passes."""
    kept, peak = max(one.kept for one in passes), max(one.peak for one in passes)
    return [Part(f"states kept for backward: {rows}", kept), Part("working memory of a pass", peak - kept)]


def _learner(config: Config) -> Footprint:
    """`actors.alignment.learner` or `preference_learner`: backbone, adapters and all that AdamW keeps, batch, pass."""
    align, ppo, dpo, images = config.align, config.align.ppo, config.align.dpo, config.data.images_per_prompt
    of_pairs, workers = align.learns_from_preferences, align.fewest_workers
    sampling = config.sample if of_pairs else align.rollout
    has_critic = not of_pairs and ALGORITHMS[align.algorithm].has_critic
    critic_lora = align.lora if align.critic_from_reward is None else config.rewards.lora
    run = dry_run(config.policy.model, config.policy.dtype, budget=config.data.pixel_budget)
    model, critic_model = (
        policy_model(run, lora, has_critic, align.activation_checkpointing) for lora in (align.lora, critic_lora)
    )
    policy, critic = [*model.policy_parameters().values()], [*critic_model.critic_parameters().values()]
    trained = tensor_bytes([*policy, *critic])

    tokens = _longest(run, images, sampling.max_tokens, sampling.engine.max_model_len)
    response = min(sampling.max_tokens, tokens)
    share = math.ceil((dpo.pairs_per_step if of_pairs else align.rollout_batch_size) / workers)
    prompts = share if of_pairs else math.ceil(share / align.samples_per_prompt)
    of_minibatch = math.ceil(ppo.minibatch_size / workers)
    if of_pairs:
        batch = BatchSetting("align.dpo.micro_batch_size", min(share, dpo.micro_batch_size))
    elif ppo.micro_batch_tokens is None:
        batch = BatchSetting("align.ppo.micro_batch_size", min(of_minibatch, ppo.micro_batch_size))
    else:
        fitting = max(1, ppo.micro_batch_tokens // tokens)
        batch = BatchSetting("align.ppo.micro_batch_tokens", min(of_minibatch, fitting), tokens)
    rows = 2 * batch.rows if of_pairs else batch.rows  # both of a pair
    together = rows if of_pairs else min(ESTIMATE_FACTOR * rows, share)
    entropy = not of_pairs and ppo.entropy_coefficient > 0
    passes = [
        policy_pass(model, "policy", rows, tokens, response, with_entropy=entropy),
        policy_pass(model, "policy", together, tokens, response, training=False, with_entropy=not of_pairs),
        PassMemory(0, run.image_pass(min(run.prompts_per_pass(images), prompts), images).peak),
    ]
    if has_critic:
        passes.append(policy_pass(critic_model, "critic", rows, tokens, response))
    if workers > 1:  # gradients on their way to other workers
        passes.append(PassMemory(0, max(tensor_bytes(policy), tensor_bytes(critic))))

    shards = workers if align.sharding == "full" else 1
    who, what = ("policy and critic: adapters", ", value head") if has_critic else ("policy: adapter", "")
    parts = [_weights(run, shards=shards)]
    if shards > 1:
        parts.append(Part("layers of it that are together in a pass", run.gathered_bytes()))
    parts += [
        Part(f"{who} of rank {align.lora.rank}{what}, float32", trained),
        Part("their gradients, float32", trained),
        Part("their AdamW states, float32", 2 * trained + FLOAT32 * len([*policy, *critic])),
    ]
    if align.rollout.max_staleness and not of_pairs:
        parts.append(Part("adapter of the policy before, and a copy while it is probed", 2 * tensor_bytes(policy)))
    in_batch = run.image_pass(prompts, images).kept + share * (2 if of_pairs else 1) * tokens * ROW_BYTES
    parts.append(Part(f"image features and rows of {share:,} {'pairs' if of_pairs else 'responses'}", in_batch))
    kind = ", checkpointed" if align.activation_checkpointing else ""
    return Footprint([*parts, *_pass_parts(f"{rows} responses of {tokens:,} tokens{kind}", *passes)], batch)


def _reward_backbone(config: Config) -> tuple[MetaBackbone, int, int]:
    """The backbone of reward models, the tokens of the longest sequence that it reads, and the segments in it."""
    rewards, sample, images = config.rewards, config.sample, config.data.images_per_prompt
    run = dry_run(rewards.backbone, rewards.dtype, budget=config.data.pixel_budget)
    segments = math.ceil(sample.max_tokens / SEGMENT_TOKENS)
    most = max(sample.engine.max_model_len, len(run.prompt(images)) + sample.max_tokens) + segments
    return run, _longest(run, images, sample.max_tokens + segments, most), segments


def _reward_trainer(config: Config) -> Footprint:
    """`actors.rewards.trainer` at its last adapter: those before it are still there, with their gradients."""
    rewards, images = config.rewards, config.data.images_per_prompt
    tasks = reward_tasks(rewards.kind, config.run.type_names)
    run, tokens, segments = _reward_backbone(config)
    model = reward_model(run, rewards.lora, tasks)
    held = tensor_bytes(one for task in tasks for one in model.trainable_parameters(task.heads[0]))
    last = model.trainable_parameters(tasks[-1].heads[0])
    rows = min(rewards.micro_batch_size, math.ceil(rewards.batch_size / rewards.num_workers))
    passes = (
        reward_pass(model, tasks[-1], rows, tokens, segments, images),
        reward_pass(model, tasks[-1], SCORING_BATCH, tokens, segments, images, training=False),
        # AdamW's square roots, the message to other workers
        PassMemory(0, tensor_bytes(last) * (2 if rewards.num_workers > 1 else 1)),
    )
    parts = [
        _weights(run, rewards.quantisation),
        Part(f"{len(tasks)} adapter(s) of rank {rewards.lora.rank} and their heads, float32", held),
        Part("their gradients, float32", held),
        Part("AdamW states of the one that is trained, float32", 2 * tensor_bytes(last) + FLOAT32 * len(last)),
        Part("its weights of the best epoch, float32", tensor_bytes(last)),
        *_pass_parts(f"{rows} responses of {tokens:,} tokens", *passes),
    ]
    return Footprint(parts, BatchSetting("rewards.micro_batch_size", rows))


def _reward_replica(config: Config, types: tuple[str, ...]) -> Footprint:
    """`actors.rewards.service`: adapters stay float32, and nothing is kept for a backward pass."""
    rewards = config.rewards
    run, tokens, segments = _reward_backbone(config)
    tasks = reward_tasks("separate" if rewards.kind == "separate" else "multitask", types)  # a head for each type
    model = reward_model(run, rewards.lora, tasks)
    rows = min(SCORING_BATCH, config.serve.max_batch_size)
    held = tensor_bytes(one for task in tasks for one in model.trainable_parameters(task.heads[0]))
    scoring = reward_pass(model, tasks[0], rows, tokens, segments, config.data.images_per_prompt, training=False)
    parts = (
        _weights(run, rewards.quantisation),
        Part(f"{len(tasks)} adapter(s) of rank {rewards.lora.rank}, {len(types)} head(s), float32", held),
        Part(f"working memory of a pass: {rows} responses of {tokens:,} tokens", scoring.peak),
    )
    return Footprint(parts, BatchSetting("serve.max_batch_size", rows))


def _engine(config: Config, request: ResourceRequest, engine: EngineConfig, gpu: int | None) -> Footprint:
    """A vLLM engine: what it reserves, and how much of that is left for keys and values."""
    owner = functools.reduce(getattr, request.section.split(".")[:-1], config)
    model = {SERVER: "serve_model", "Verifier": "model", "SecondVerifier": "model"}.get(request.actor)
    name = getattr(owner, model) if model else config.policy.model
    run = dry_run(name, engine.dtype, engine=True, budget=config.data.pixel_budget)
    sync = {"RolloutWorker": config.align.rollout.sync, "Generator": config.evaluation_sync}.get(request.actor)
    parts = [_weights(run)]
    if sync == "adapter":
        rank = next((one for one in LORA_RANKS if one >= config.align.lora.rank), config.align.lora.rank)
        slots = LORA_SLOTS * run.slot_bytes(rank)
        parts.append(Part(f"{LORA_SLOTS} slots for adapters up to rank {rank}, {run.dtype}", slots))
    working = run.prefill_peak(ENGINE_TOKENS) + FLOAT32 * 2 * engine.max_num_seqs * run.vocabulary  # logits
    parts.append(Part(f"working memory of a pass of {ENGINE_TOKENS:,} tokens", working))
    fixed = sum(part.size or 0 for part in parts) + RUNTIME
    per_token, block = run.cache_bytes_per_token(), engine.block_size or ENGINE_BLOCK
    sequence = per_token * math.ceil(engine.max_model_len / block) * block
    claim = 0 if gpu is None else int(engine.gpu_memory_utilization * gpu)
    what, cache = f"key-value cache, {per_token / 1024:,.3g} KiB a token: ", None
    if engine.kv_cache_gib is not None:
        cache = int(engine.kv_cache_gib * GIB)
    elif gpu is not None:
        cache = max(0, claim - fixed)
    if cache is not None:
        what += f"{cache // sequence:,} sequences of {engine.max_model_len:,} tokens"
    elif request.num_gpus:
        what += f"the rest of {engine.gpu_memory_utilization:g} of the GPU"
    else:
        what += "a share of the host's memory"
    parts.append(Part(what, cache))
    if sync == "merged":
        largest = max(tensor.nbytes for tensor in run.model.parameters())
        parts.append(Part("largest layer once more, while merged weights are loaded", largest))
    too_short = cache is not None and cache < sequence
    return Footprint(parts, shortage=_shortage(request, engine, fixed + sequence) if too_short else "", claim=claim)


def _shortage(request: ResourceRequest, engine: EngineConfig, needed: int) -> str:
    length = f"{request.section}.max_model_len={engine.max_model_len}"
    if engine.kv_cache_gib is not None:
        return f"no sequence of {length} fits its kv_cache_gib: raise the latter"
    return (
        f"it needs {needed / GIB:.1f} GiB for one sequence of {length}, more than "
        f"gpu_memory_utilization={engine.gpu_memory_utilization:g} of the GPU: raise that, or lower max_model_len"
    )
