"""What each actor that holds a model keeps on its device, part by part, at its largest.

Learners and reward trainers are counted as `actors.alignment.learner` and `actors.rewards.trainer` run them, with
the longest responses that the configuration allows; vLLM engines as `actors.engine.start` starts them, which reserve
what they are told.
Rewards are trained and scored on images and texts whose prompts are taken to have `PROMPT_TOKENS` beside the image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fgaif_ray.cluster.model_sizes import ITEM_BYTES, ModelSize, model_size
from fgaif_ray.cluster.pass_memory import (
    FLOAT32,
    Adapter,
    gathered_weights,
    image_features,
    image_pass,
    kept_states,
    logit_chunk,
    working_states,
)
from fgaif_ray.cluster.resources import LORA_RANKS, LORA_SLOTS, ResourceRequest, reward_scorers
from fgaif_ray.config import Config, EngineConfig, LoRAOptions
from fgaif_ray.records import CLASS_NAMES

GIB: Final = 1 << 30
RUNTIME: Final = 1 * GIB
"""About what a CUDA context, its libraries and captured graphs take beside tensors: an estimate, not counted."""
PROMPT_TOKENS: Final = 64
SEGMENT_TOKENS: Final = 8
"""Tokens of the shortest usual sub-sentence: a reward model reads a separator more after each."""
ENGINE_TOKENS: Final = 8192
"""Tokens of vLLM's largest forward pass, its default on most GPUs."""
ENGINE_BLOCK: Final = 16
BATCH_TENSORS: Final = 12
"""Float32 tensors ``[responses, tokens]`` of a rollout batch: rewards, estimates, advantages and the like."""

Remedy = Callable[[int], str | None]
"""Given the bytes that an actor may take: the settings that make it fit, or None where none does."""


def _none(_room: int) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Part:
    """Something that lies on a device."""

    what: str
    size: int | None
    """Bytes; None where they are not known before it runs."""
    weights: bool = False
    """Whether it is the weights of a model, which no setting of a batch makes smaller."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """All that an actor keeps on its device."""

    parts: tuple[Part, ...]
    remedy: Remedy = _none
    shortage: str | None = None
    """Why it could not start, though its parts may fit."""

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
    on_gpu = request.num_gpus > 0
    label, align = config.label, config.align
    rank = align.lora.rank if align.rollout.sync == "adapter" else None
    merged = align.rollout.sync == "merged"
    found: Footprint
    match request.actor:
        case "Sampler":
            found = _engine(request.section, config.policy.model, config.sample.engine, gpu, on_gpu)
        case "Verifier":
            found = _engine(request.section, label.verifier.model, label.verifier.engine, gpu, on_gpu)
        case "SecondVerifier" if label.second_verifier is not None:
            second = label.second_verifier
            found = _engine(request.section, second.model, second.engine, gpu, on_gpu)
        case "RolloutWorker":
            found = _engine(request.section, config.policy.model, align.rollout.engine, gpu, on_gpu, rank, merged)
        case "Generator":
            found = _engine(request.section, config.policy.model, config.evaluate.engine, gpu, on_gpu, rank, merged)
        case "RewardTrainer":
            found = _reward_trainer(config)
        case "Learner":
            found = _learner(config)
        case name if name in reward_scorers(config):
            found = _reward_replica(config, len(reward_scorers(config)[name]))
        case _:
            return None
    if on_gpu:
        found = Footprint((*found.parts, _runtime()), found.remedy, found.shortage)
    return found


def served_model(section: str, model: str, engine: EngineConfig, gpu: int | None, on_gpu: bool) -> Footprint:
    """What vLLM's own server keeps, which a job starts beside Ray on the driver's machine.

    Raises:
        UncountableModelError: see ``footprint``.
    """
    found = _engine(f"{section}.engine", model, engine, gpu, on_gpu)
    return Footprint((*found.parts, *([_runtime()] if on_gpu else [])), found.remedy, found.shortage)


def _runtime() -> Part:
    return Part("CUDA context and libraries, about", RUNTIME)


def _weights(size: ModelSize, dtype: str, quantisation: str = "none", shards: int = 1) -> Part:
    held = "4 bits" if quantisation == "4bit" else dtype
    text = f"weights of {size.name}: {size.parameters:,} in {held}" + (f", 1/{shards} of them" if shards > 1 else "")
    return Part(text, size.weight_bytes(dtype, quantisation, shards), weights=True)


def _learner(config: Config) -> Footprint:
    """`actors.alignment.learner`: the backbone once, both adapters with all that AdamW keeps, the batch, and a pass."""
    from fgaif_ray.rl.micro_batches import ESTIMATE_FACTOR
    from fgaif_ray.rl.policy import IMAGES_PER_PASS

    align, ppo = config.align, config.align.ppo
    size = model_size(config.policy.model)
    dtype = size.loaded_dtype(config.policy.dtype)
    item = ITEM_BYTES[dtype]
    critic_lora = align.lora if align.critic_from_reward is None else config.rewards.lora
    policy = size.adapter_parameters(align.lora.rank, align.lora.target_modules)
    critic = size.adapter_parameters(critic_lora.rank, critic_lora.target_modules) + size.decoder.hidden + 1
    tensors = 2 * sum(len(size.adapted_layers(one.target_modules)) for one in (align.lora, critic_lora)) + 2
    trained = FLOAT32 * (policy + critic)
    share = math.ceil(align.rollout_batch_size / align.num_workers)
    images = math.ceil(share / align.samples_per_prompt)
    longest = PROMPT_TOKENS + size.image_tokens + align.rollout.max_tokens
    longest = min(longest, align.rollout.engine.max_model_len, size.positions)
    most = math.ceil(ppo.minibatch_size / align.num_workers)  # a worker's share of a minibatch
    adapter = max((_adapter(align.lora), _adapter(critic_lora)), key=lambda one: one.rank)

    def kept(rows: int, checkpointing: bool) -> int:
        return kept_states(size, adapter, dtype, rows, longest, checkpointing)

    def working(rows: int, checkpointing: bool) -> int:
        """Beside the kept states, in whichever phase of a step needs most."""
        responses = min(align.rollout.max_tokens, longest)
        update = max(working_states(size.decoder, item, rows * longest), logit_chunk(size, rows * responses))
        estimated = min(ESTIMATE_FACTOR * rows, share) * longest
        estimate = working_states(size.decoder, item, estimated) + logit_chunk(size, estimated)
        encode = image_pass(size, dtype, min(IMAGES_PER_PASS, images))
        reduce = FLOAT32 * max(policy, critic) if align.num_workers > 1 else 0
        return max(update, max(estimate, encode, reduce) - kept(rows, checkpointing))

    budget = ppo.micro_batch_tokens
    rows = min(most, ppo.micro_batch_size if budget is None else max(1, budget // longest))
    checkpointing = align.activation_checkpointing
    batch = image_features(size, dtype, images) + share * (8 * longest + BATCH_TENSORS * FLOAT32 * longest)
    shards = align.num_workers if align.sharding == "full" else 1
    gathered = gathered_weights(size, dtype)
    parts = [
        _weights(size, dtype, shards=shards),
        *([Part("layers of it that are together in a pass", gathered)] if shards > 1 else []),
        Part(f"policy and critic: adapters of rank {align.lora.rank}, value head, float32", trained),
        Part("their gradients, float32", trained),
        Part("their AdamW states, float32", 2 * trained + FLOAT32 * tensors),
    ]
    if align.rollout.max_staleness:
        parts.append(Part("adapter of the policy before, and a copy while it is probed", 2 * FLOAT32 * policy))
    parts.append(Part(f"image features and rows of {share:,} responses", batch))
    fixed = sum(part.size or 0 for part in parts) + (RUNTIME if align.gpus_per_worker else 0)
    kind = ", checkpointed" if checkpointing else ""
    parts += [
        Part(f"states kept for backward: {rows} responses of {longest:,} tokens{kind}", kept(rows, checkpointing)),
        Part("working memory of a pass", working(rows, checkpointing)),
    ]

    def remedy(room: int) -> str | None:
        def fitting(checkpointed: bool, saved: int) -> int:
            left, possible = room - fixed + saved, range(rows, 0, -1)
            return next((one for one in possible if kept(one, checkpointed) + working(one, checkpointed) <= left), 0)

        def found(*settings: str, saved: int = 0) -> list[str]:
            choices = [(checkpointing, settings)]
            if not checkpointing:
                choices.append((True, (*settings, "align.activation_checkpointing=true")))
            return [
                " with ".join(filter(None, [*chosen, sized(count)]))
                for checkpointed, chosen in choices
                if (count := fitting(checkpointed, saved))
            ]

        def sized(count: int) -> str:
            if count == rows:
                return ""
            if budget is not None:
                return f"align.ppo.micro_batch_tokens={count * longest}"
            return f"align.ppo.micro_batch_size={count}"

        settings = found()
        if not settings and shards == 1 and align.num_workers > 1:
            saved = size.weight_bytes(dtype) - size.weight_bytes(dtype, shards=align.num_workers) - gathered
            settings = found("align.sharding=full", saved=saved)
        return ", or ".join(settings) or None

    return Footprint(tuple(parts), remedy)


def _adapter(lora: LoRAOptions) -> Adapter:
    return Adapter(lora.rank, lora.target_modules)


def _reading_length(config: Config, size: ModelSize) -> int:
    """Longest sequence that a reward model of this configuration reads."""
    response = config.sample.max_tokens + math.ceil(config.sample.max_tokens / SEGMENT_TOKENS)
    return min(PROMPT_TOKENS + size.image_tokens + response, size.positions)


def _reward_trainer(config: Config) -> Footprint:
    """`actors.rewards.trainer` at its last adapter: those before it are still there, with their gradients."""
    from fgaif_ray.rewards.kinds import reward_tasks
    from fgaif_ray.rewards.model import SCORING_BATCH

    rewards = config.rewards
    size = model_size(rewards.backbone)
    dtype = size.loaded_dtype(rewards.dtype)
    item = ITEM_BYTES[dtype]
    tasks = reward_tasks(rewards.kind, config.run.type_names)
    low_rank = size.adapter_parameters(rewards.lora.rank, rewards.lora.target_modules)
    head = len(CLASS_NAMES) * (size.decoder.hidden + 1)
    each = [FLOAT32 * (low_rank + head * len(task.heads)) for task in tasks]
    tensors = 2 * (len(size.adapted_layers(rewards.lora.target_modules)) + len(tasks[-1].heads))
    longest = _reading_length(config, size)
    most = math.ceil(rewards.batch_size / rewards.num_workers)
    rows = min(rewards.micro_batch_size, most)

    def kept(count: int) -> int:
        return kept_states(size, _adapter(rewards.lora), dtype, count, longest, False)

    def working(count: int) -> int:
        def forward(together: int) -> int:
            features = image_features(size, dtype, together)
            passed = max(working_states(size.decoder, item, together * longest), image_pass(size, dtype, together))
            return passed + features

        step = each[-1] * (2 if rewards.num_workers > 1 else 1)  # AdamW's square roots, the message to other workers
        return max(forward(count), max(forward(SCORING_BATCH), step) - kept(count))

    fixed = (
        _weights(size, dtype, rewards.quantisation),
        Part(f"{len(tasks)} adapter(s) of rank {rewards.lora.rank} and their heads, float32", sum(each)),
        Part("their gradients, float32", sum(each)),
        Part("AdamW states of the one that is trained, float32", 2 * each[-1] + FLOAT32 * tensors),
        Part("its weights of the best epoch, float32", each[-1]),
    )
    taken = sum(part.size or 0 for part in fixed) + (RUNTIME if rewards.gpus_per_worker else 0)

    saved = size.weight_bytes(dtype, rewards.quantisation) - size.weight_bytes(dtype, "4bit")

    def remedy(room: int) -> str | None:
        for setting, left in (("", room - taken), ("rewards.quantisation=4bit with ", room - taken + saved)):
            fitting = next((one for one in range(rows, 0, -1) if kept(one) + working(one) <= left), 0)
            if fitting:
                return f"{setting}rewards.micro_batch_size={fitting}"
        return None

    states = Part(f"states kept for backward: {rows} responses of {longest:,} tokens", kept(rows))
    return Footprint((*fixed, states, Part("working memory of a pass", working(rows))), remedy)


def _reward_replica(config: Config, types: int) -> Footprint:
    """`actors.rewards.service`: adapters stay float32, and nothing is kept for a backward pass."""
    from fgaif_ray.rewards.model import SCORING_BATCH

    rewards = config.rewards
    size = model_size(rewards.backbone)
    dtype = size.loaded_dtype(rewards.dtype)
    adapters = types if rewards.kind == "separate" else 1
    low_rank = size.adapter_parameters(rewards.lora.rank, rewards.lora.target_modules)
    head = len(CLASS_NAMES) * (size.decoder.hidden + 1)
    longest = _reading_length(config, size)
    rows = min(SCORING_BATCH, config.serve.max_batch_size)

    def working(count: int) -> int:
        passed = working_states(size.decoder, ITEM_BYTES[dtype], count * longest)
        return max(passed, image_pass(size, dtype, count)) + image_features(size, dtype, count)

    fixed = (
        _weights(size, dtype, rewards.quantisation),
        Part(f"{adapters} adapter(s) of rank {rewards.lora.rank}, {types} head(s), float32",
             FLOAT32 * (adapters * low_rank + types * head)),
    )  # fmt: skip
    taken = sum(part.size or 0 for part in fixed) + (RUNTIME if config.serve.num_gpus else 0)

    def remedy(room: int) -> str | None:
        fitting = next((one for one in range(rows, 0, -1) if taken + working(one) <= room), 0)
        return f"serve.max_batch_size={fitting}" if fitting else None

    scored = Part(f"working memory of a pass: {rows} responses of {longest:,} tokens", working(rows))
    return Footprint((*fixed, scored), remedy)


def _engine(
    section: str,
    model: str,
    engine: EngineConfig,
    gpu: int | None,
    on_gpu: bool,
    rank: int | None = None,
    merged: bool = False,
) -> Footprint:
    """A vLLM engine: what it reserves, and how much of that is left for keys and values."""
    size = model_size(model)
    dtype = size.engine_dtype(engine.dtype)
    item, tower = ITEM_BYTES[dtype], size.decoder
    parts = [_weights(size, dtype)]
    if rank is not None:
        room = next((one for one in LORA_RANKS if one >= rank), rank)
        slots = LORA_SLOTS * size.adapter_parameters(room) * item
        parts.append(Part(f"{LORA_SLOTS} slots for adapters up to rank {room}, {dtype}", slots))
    images = math.ceil(ENGINE_TOKENS / size.image_tokens) if size.image_tokens else 0
    passed = max(working_states(tower, item, ENGINE_TOKENS), image_pass(size, dtype, images))
    logits = FLOAT32 * 2 * engine.max_num_seqs * size.vocabulary
    parts.append(Part(f"working memory of a pass of {ENGINE_TOKENS:,} tokens", passed + logits))
    fixed = sum(part.size or 0 for part in parts)
    per_token = size.cache_bytes_per_token(dtype)
    block = engine.block_size or ENGINE_BLOCK
    sequence = per_token * math.ceil(engine.max_model_len / block) * block
    shortage, cache = None, _cache_bytes(engine, gpu, fixed)
    of_each = f"key-value cache, {per_token / 1024:,.3g} KiB a token"
    if cache is None:
        rest = f"the rest of {engine.gpu_memory_utilization:g} of the GPU" if on_gpu else "a share of the host's memory"
        parts.append(Part(f"{of_each}: {rest}", None))
    else:
        count = cache // sequence if cache > 0 else 0
        parts.append(Part(f"{of_each}: {count:,} sequences of {engine.max_model_len:,} tokens", max(cache, 0)))
        if not count:
            shortage = _no_room(section, engine, gpu, fixed + sequence)
    if merged:
        layer = max(2 * tower.intermediate, tower.queries + 2 * tower.keys, size.vocabulary) * tower.hidden * item
        parts.append(Part("largest layer once more, while merged weights are loaded", layer))

    def remedy(allowed: int) -> str | None:
        needed = fixed + RUNTIME + sequence
        if engine.kv_cache_gib is not None:
            left = (allowed - fixed - RUNTIME) / GIB
            return f"{section}.kv_cache_gib={math.floor(left * 10) / 10:g}" if left * GIB >= sequence else None
        return None if gpu is None or allowed < needed else f"{section}.gpu_memory_utilization={_share(allowed, gpu)}"

    return Footprint(tuple(parts), remedy, shortage)


def _cache_bytes(engine: EngineConfig, gpu: int | None, fixed: int) -> int | None:
    """For keys and values; None where it is not known before the engine runs."""
    if engine.kv_cache_gib is not None:
        return int(engine.kv_cache_gib * GIB)
    return None if gpu is None else int(engine.gpu_memory_utilization * gpu) - fixed - RUNTIME


def _share(part: int, whole: int) -> str:
    return f"{math.floor(100 * part / whole) / 100:g}"


def _no_room(section: str, engine: EngineConfig, gpu: int | None, needed: int) -> str:
    if engine.kv_cache_gib is not None or gpu is None:
        return f"no sequence of {section}.max_model_len={engine.max_model_len} fits its kv_cache_gib: raise the latter"
    wanted = f"{(needed + RUNTIME) / GIB:.1f} GiB"
    return (
        f"it needs {wanted} for one sequence of {section}.max_model_len={engine.max_model_len}, more than "
        f"gpu_memory_utilization={engine.gpu_memory_utilization:g} of the GPU: raise that, or lower max_model_len"
    )
