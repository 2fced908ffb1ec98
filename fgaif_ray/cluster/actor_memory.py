"""What each actor that holds a model keeps on its device, part by part, at its largest.

Learners and reward models are counted by dry runs (``fgaif_ray.cluster.dry_run``) of the passes that
`actors.alignment.learner` or `preference_learner`, `actors.rewards.trainer` and `actors.rewards.service` make, with the
longest responses that the configuration allows; vLLM engines as `actors.engine.start` starts them, which reserve what
they are told.
Rewards are trained and scored on images and texts whose prompts are taken to have `PROMPT_TOKENS` beside the images, of
which each prompt is taken to have as many as `data.images_per_prompt` allows.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

from fgaif_ray.cluster.dry_run import DryRun, Head, PassMemory, dry_run
from fgaif_ray.cluster.resources import LORA_RANKS, LORA_SLOTS, ResourceRequest, reward_scorers
from fgaif_ray.config import Config, EngineConfig
from fgaif_ray.records import CLASS_NAMES
from fgaif_ray.rewards.kinds import reward_tasks
from fgaif_ray.rewards.model import SCORING_BATCH
from fgaif_ray.rl.algorithms import ALGORITHMS
from fgaif_ray.rl.micro_batches import ESTIMATE_FACTOR
from fgaif_ray.rl.policy import CRITIC, POLICY
from fgaif_ray.vlm.passes import VocabularyScores

GIB: Final = 1 << 30
FLOAT32: Final = 4
RUNTIME: Final = 1 * GIB
"""About what a CUDA context, its libraries and captured graphs take beside tensors: an estimate, not counted."""
PROMPT_TOKENS: Final = 64
SEGMENT_TOKENS: Final = 8
"""Tokens of the shortest usual segment: a reward model reads a separator more after each."""
ENGINE_TOKENS: Final = 8192
"""Tokens of vLLM's largest forward pass, its default on most GPUs."""
ENGINE_BLOCK: Final = 16
BATCH_TENSORS: Final = 12
"""Float32 tensors ``[responses, tokens]`` of a rollout batch: rewards, estimates, advantages and the like."""
REWARD: Final = "reward"
SERVER: Final = "vLLM server"
"""What a job starts beside Ray on the driver's machine; no actor, and Ray does not know of it."""


@dataclass(frozen=True, slots=True)
class Part:
    """Something that lies on a device."""

    what: str
    size: int | None
    """Bytes; None where they are not known before it runs."""
    weights: bool = False
    """Whether it is the weights of a model, which no setting of a batch makes smaller."""


@dataclass(frozen=True, slots=True)
class BatchSetting:
    """The setting that decides how many rows go through a model together."""

    key: str
    rows: int
    """Of the largest pass."""
    each: int = 1
    """What a row adds to the setting."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """All that an actor keeps on its device."""

    parts: tuple[Part, ...]
    batch: BatchSetting | None = None
    """None for an engine, which decides by itself."""
    least: int = 0
    """Bytes that an engine needs for one sequence."""
    shortage: str | None = None
    """Why it could not start, though its parts may fit."""
    claim: int = 0
    """Bytes that must be free when it starts: vLLM looks for its share of the GPU, even where ``kv_cache_gib`` says how
    much it takes."""

    @property
    def total(self) -> int:
        """Bytes of the parts that are known."""
        return sum(part.size or 0 for part in self.parts)

    @property
    def weights(self) -> int:
        """Bytes of the models' weights."""
        return sum(part.size or 0 for part in self.parts if part.weights)

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
        found = _preference_learner(config) if config.align.learns_from_preferences else _learner(config)
    elif request.actor == "RewardTrainer":
        found = _reward_trainer(config)
    elif request.actor in scorers:
        found = _reward_replica(config, len(scorers[request.actor]))
    elif isinstance(section, EngineConfig):
        found = _engine(config, request, section, gpu)
    else:
        return None
    if not request.num_gpus:
        return found
    return replace(found, parts=(*found.parts, Part("CUDA context and libraries, about", RUNTIME)))


def _weights(run: DryRun, quantisation: str = "none", shards: int = 1) -> Part:
    held = "4 bits" if quantisation == "4bit" else run.dtype
    text = f"weights of {run.name}: {run.parameters:,} in {held}" + (f", 1/{shards} of them" if shards > 1 else "")
    return Part(text, run.weight_bytes(quantisation, shards), weights=True)


def _longest(run: DryRun, images: int, responses: int, most: int) -> int:
    """Tokens of the longest sequence: all that are allowed where those of an image are not known."""
    length = most if run.image_tokens is None else PROMPT_TOKENS + images * run.image_tokens + responses
    return min(length, most, run.positions)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(one.nbytes for one in tensors)


def log_prob_head(run: DryRun, temperature: float, with_entropy: bool) -> Head:
    """The policy's head: log-probabilities and, where asked for, entropies, as a learner computes them."""
    scores = VocabularyScores(run.model.get_output_embeddings(), (), temperature)

    def head(states: Tensor) -> Tensor:
        found, entropies = scores(states, states.new_empty(len(states), dtype=torch.int64), with_entropy)
        log_probs: Tensor = found
        return log_probs if entropies is None else log_probs + entropies

    return head


def _linear(run: DryRun, outputs: int) -> tuple[Head, int]:
    """A float32 head of that many outputs, and its bytes."""
    layer = nn.Linear(run.hidden, outputs, device="meta")
    return lambda states: layer(states.float()), _bytes(layer.parameters())


def _trained_part(rank: int, has_critic: bool) -> str:
    if has_critic:
        return f"policy and critic: adapters of rank {rank}, value head, float32"
    return f"policy: adapter of rank {rank}, float32"


def _learner(config: Config) -> Footprint:
    """`actors.alignment.learner`: the backbone once, its adapters with all that AdamW keeps, the batch, and a pass."""
    align, ppo, images = config.align, config.align.ppo, config.data.images_per_prompt
    has_critic = ALGORITHMS[align.algorithm].has_critic
    critic_lora = align.lora if align.critic_from_reward is None else config.rewards.lora
    adapters = [(POLICY, align.lora), *([(CRITIC, critic_lora)] if has_critic else [])]
    run = dry_run(config.policy.model, config.policy.dtype, *adapters, budget=config.data.pixel_budget)
    values, value_head = _linear(run, 1)
    policy, critic = _bytes(run.trained(POLICY)), _bytes(run.trained(CRITIC)) + value_head if has_critic else 0
    tensors = len(run.trained(POLICY)) + (len(run.trained(CRITIC)) + 2 if has_critic else 0)
    tokens = _longest(run, images, align.rollout.max_tokens, align.rollout.engine.max_model_len)
    read = min(align.rollout.max_tokens, tokens)
    share = math.ceil(align.rollout_batch_size / align.fewest_workers)
    prompts = math.ceil(share / align.samples_per_prompt)
    most = math.ceil(ppo.minibatch_size / align.fewest_workers)  # a worker's share of a minibatch
    if ppo.micro_batch_tokens is None:
        batch = BatchSetting("align.ppo.micro_batch_size", min(most, ppo.micro_batch_size))
    else:
        batch = BatchSetting(
            "align.ppo.micro_batch_tokens", min(most, max(1, ppo.micro_batch_tokens // tokens)), tokens
        )

    def update(adapter: str, head: Head) -> PassMemory:
        decoder = run.training_pass(batch.rows, tokens, read, adapter, align.activation_checkpointing)
        return decoder.then(run.head_pass(head, batch.rows * read))

    together = min(ESTIMATE_FACTOR * batch.rows, share)
    entropies = run.head_pass(log_prob_head(run, align.rollout.temperature, True), together * read, training=False)
    passes = (
        update(POLICY, log_prob_head(run, align.rollout.temperature, ppo.entropy_coefficient > 0)),
        *(
            [update(CRITIC if critic_lora != align.lora else POLICY, values)] if has_critic else []
        ),  # of one shape alike
        run.scoring_pass(together, tokens, read, POLICY).then(entropies),
        PassMemory(0, run.image_pass(min(run.prompts_per_pass(images), prompts), images).peak),
        PassMemory(
            0, max(policy, critic) if align.fewest_workers > 1 else 0
        ),  # gradients on their way to other workers
    )
    shards = align.fewest_workers if align.sharding == "full" else 1
    previous = "adapter of the policy before, and a copy while it is probed"
    kind = ", checkpointed" if align.activation_checkpointing else ""
    rollouts = run.image_pass(prompts, images).kept + share * tokens * (8 + BATCH_TENSORS * FLOAT32)
    parts = (
        _weights(run, shards=shards),
        *([Part("layers of it that are together in a pass", run.gathered_bytes())] if shards > 1 else []),
        Part(_trained_part(align.lora.rank, has_critic), policy + critic),
        Part("their gradients, float32", policy + critic),
        Part("their AdamW states, float32", 2 * (policy + critic) + FLOAT32 * tensors),
        *([Part(previous, 2 * policy)] if align.rollout.max_staleness else []),
        Part(f"image features and rows of {share:,} responses", rollouts),
        *_training_parts(batch.rows, f"{tokens:,} tokens{kind}", passes),
    )
    return Footprint(parts, batch)


def _preference_learner(config: Config) -> Footprint:
    """`actors.alignment.preference_learner`: as `_learner`, of a step's pairs, and with no more than the policy."""
    align, dpo, images = config.align, config.align.dpo, config.data.images_per_prompt
    run = dry_run(config.policy.model, config.policy.dtype, (POLICY, align.lora), budget=config.data.pixel_budget)
    policy = _bytes(run.trained(POLICY))
    tokens = _longest(run, images, config.sample.max_tokens, config.sample.engine.max_model_len)
    read = min(config.sample.max_tokens, tokens)
    share = math.ceil(dpo.pairs_per_step / align.fewest_workers)
    batch = BatchSetting("align.dpo.micro_batch_size", min(share, dpo.micro_batch_size))
    rows = 2 * batch.rows  # both of a pair
    head = log_prob_head(run, 1.0, False)
    decoder = run.training_pass(rows, tokens, read, POLICY, align.activation_checkpointing)
    passes = (
        decoder.then(run.head_pass(head, rows * read)),
        run.scoring_pass(rows, tokens, read, POLICY).then(run.head_pass(head, rows * read, training=False)),
        PassMemory(0, run.image_pass(min(run.prompts_per_pass(images), share), images).peak),
        PassMemory(0, policy if align.fewest_workers > 1 else 0),  # gradients on their way to other workers
    )
    shards = align.fewest_workers if align.sharding == "full" else 1
    kind = ", checkpointed" if align.activation_checkpointing else ""
    encoded = run.image_pass(share, images).kept + 2 * share * tokens * 8
    parts = (
        _weights(run, shards=shards),
        *([Part("layers of it that are together in a pass", run.gathered_bytes())] if shards > 1 else []),
        Part(_trained_part(align.lora.rank, False), policy),
        Part("its gradients, float32", policy),
        Part("its AdamW states, float32", 2 * policy + FLOAT32 * len(run.trained(POLICY))),
        Part(f"image features and rows of {share:,} pairs", encoded),
        *_training_parts(rows, f"{tokens:,} tokens{kind}", passes),
    )
    return Footprint(parts, batch)


def _training_parts(rows: int, length: str, passes: Sequence[PassMemory]) -> tuple[Part, Part]:
    """What is enough for each of several passes."""
    kept, peak = max(one.kept for one in passes), max(one.peak for one in passes)
    return (
        Part(f"states kept for backward: {rows} responses of {length}", kept),
        Part("working memory of a pass", peak - kept),
    )


def _reward_model(config: Config) -> tuple[DryRun, int, int]:
    """The model of one type, the tokens of the longest sequence that it reads, and the segments in it."""
    rewards, sample, images = config.rewards, config.sample, config.data.images_per_prompt
    run = dry_run(rewards.backbone, rewards.dtype, (REWARD, rewards.lora), budget=config.data.pixel_budget)
    segments = math.ceil(sample.max_tokens / SEGMENT_TOKENS)
    prompt = PROMPT_TOKENS + images * (run.image_tokens or 0)
    most = max(sample.engine.max_model_len, prompt + sample.max_tokens) + segments
    return run, _longest(run, images, sample.max_tokens + segments, most), segments


def _with_images(config: Config, run: DryRun, rows: int, decoder: PassMemory, head: PassMemory) -> PassMemory:
    """A pass whose images are read just before, and whose features stay meanwhile."""
    features, read = run.image_pass(rows, config.data.images_per_prompt), decoder.then(head)
    return PassMemory(read.kept, max(features.peak, features.kept + read.peak))


def _scoring(config: Config, rows: int) -> PassMemory:
    run, tokens, segments = _reward_model(config)
    head = run.head_pass(_linear(run, len(CLASS_NAMES))[0], rows * segments, training=False)
    return _with_images(config, run, rows, run.scoring_pass(rows, tokens, segments, REWARD), head)


def _reward_trainer(config: Config) -> Footprint:
    """`actors.rewards.trainer` at its last adapter: those before it are still there, with their gradients."""
    rewards, tasks = config.rewards, reward_tasks(config.rewards.kind, config.run.type_names)
    run, tokens, segments = _reward_model(config)
    classes, head = _linear(run, len(CLASS_NAMES))
    each = [_bytes(run.trained(REWARD)) + head * len(task.heads) for task in tasks]
    tensors = len(run.trained(REWARD)) + 2 * len(tasks[-1].heads)
    rows = min(rewards.micro_batch_size, math.ceil(rewards.batch_size / rewards.num_workers))
    decoder = run.training_pass(rows, tokens, segments, REWARD)
    passes = (
        _with_images(config, run, rows, decoder, run.head_pass(classes, rows * segments)),
        PassMemory(0, _scoring(config, SCORING_BATCH).peak),
        PassMemory(
            0, each[-1] * (2 if rewards.num_workers > 1 else 1)
        ),  # AdamW's square roots, the message to other workers
    )
    parts = (
        _weights(run, rewards.quantisation),
        Part(f"{len(tasks)} adapter(s) of rank {rewards.lora.rank} and their heads, float32", sum(each)),
        Part("their gradients, float32", sum(each)),
        Part("AdamW states of the one that is trained, float32", 2 * each[-1] + FLOAT32 * tensors),
        Part("its weights of the best epoch, float32", each[-1]),
        *_training_parts(rows, f"{tokens:,} tokens", passes),
    )
    return Footprint(parts, BatchSetting("rewards.micro_batch_size", rows))


def _reward_replica(config: Config, types: int) -> Footprint:
    """`actors.rewards.service`: adapters stay float32, and nothing is kept for a backward pass."""
    rewards = config.rewards
    run, tokens, _ = _reward_model(config)
    adapters = types if rewards.kind == "separate" else 1
    rows = min(SCORING_BATCH, config.serve.max_batch_size)
    held = adapters * _bytes(run.trained(REWARD)) + types * _linear(run, len(CLASS_NAMES))[1]
    parts = (
        _weights(run, rewards.quantisation),
        Part(f"{adapters} adapter(s) of rank {rewards.lora.rank}, {types} head(s), float32", held),
        Part(f"working memory of a pass: {rows} responses of {tokens:,} tokens", _scoring(config, rows).peak),
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
    # vLLM tries the largest images at its start, as many as a step has tokens for, whatever the prompts hold.
    tokens = max(ENGINE_TOKENS, run.largest_image_tokens)
    images = math.ceil(tokens / run.image_tokens) if run.image_tokens else 0
    passed = max(run.scoring_pass(1, ENGINE_TOKENS, 1).peak, run.image_pass(images, together=images).peak)
    logits = FLOAT32 * 2 * engine.max_num_seqs * run.vocabulary
    parts.append(Part(f"working memory of a pass of {ENGINE_TOKENS:,} tokens", passed + logits))
    fixed = sum(part.size or 0 for part in parts)
    per_token, block = run.cache_bytes_per_token(), engine.block_size or ENGINE_BLOCK
    sequence = per_token * math.ceil(engine.max_model_len / block) * block
    cache, shortage = None, None
    if engine.kv_cache_gib is not None:
        cache = int(engine.kv_cache_gib * GIB)
    elif gpu is not None:
        cache = int(engine.gpu_memory_utilization * gpu) - fixed - RUNTIME
    what = f"key-value cache, {per_token / 1024:,.3g} KiB a token: "
    if cache is not None:
        what += f"{max(cache, 0) // sequence:,} sequences of {engine.max_model_len:,} tokens"
        if cache < sequence:
            shortage = _shortage(request.section, engine, fixed + sequence + RUNTIME)
    elif request.num_gpus:
        what += f"the rest of {engine.gpu_memory_utilization:g} of the GPU"
    else:
        what += "a share of the host's memory"
    parts.append(Part(what, None if cache is None else max(cache, 0)))
    if sync == "merged":
        parts.append(Part("largest layer once more, while merged weights are loaded", run.largest_parameter()))
    claim = 0 if gpu is None else int(engine.gpu_memory_utilization * gpu)
    return Footprint(tuple(parts), least=fixed + RUNTIME + sequence, shortage=shortage, claim=claim)


def _shortage(section: str, engine: EngineConfig, needed: int) -> str:
    if engine.kv_cache_gib is not None:
        return f"no sequence of {section}.max_model_len={engine.max_model_len} fits its kv_cache_gib: raise the latter"
    return (
        f"it needs {needed / GIB:.1f} GiB for one sequence of {section}.max_model_len={engine.max_model_len}, more "
        f"than gpu_memory_utilization={engine.gpu_memory_utilization:g} of the GPU: raise that, or lower max_model_len"
    )
