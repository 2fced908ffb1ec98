"""Start of vLLM engines inside actors.

The engine runs in the actor's own process: it starts in seconds instead of tens of seconds, and the actor is the unit
that Ray places, restarts and accounts for.
"""

import gc
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from actors.engine.bans import choose_model_runner
from fgaif_ray.cluster.resources import LORA_RANKS, LORA_SLOTS
from fgaif_ray.config import EngineConfig
from fgaif_ray.errors import UserError
from fgaif_ray.progress import say
from fgaif_ray.vlm.checkpoint import check_checkpoint

if TYPE_CHECKING:
    from torch import Tensor
    from vllm import LLM
    from vllm.inputs import TokensPrompt

GIB = 1 << 30
CPU_BATCH_TOKENS = 4096
"""Tokens of a step on CPU; longer prompts get as many as they need."""
IMAGE_CACHE_GIB = 0.5
"""Images as the processor makes them that an engine keeps in host memory. They come back within a batch or not for a
long time, and vLLM's own 4 GiB would fill up over a run, in every engine."""
NO_ADAPTERS = "does not support LoRA"
"""In vLLM's message about an architecture that it serves without adapters."""


def set_environment(config: EngineConfig) -> None:
    """Set the environment that vLLM reads when it is imported; call it before the first import of vllm in a process."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if config.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(config.threads)


def announce_engines(job: str, count: int = 1) -> None:
    """Say, on the driver, why there is no output for a while."""
    say(f"{job}: starting {'the engine' if count == 1 else f'{count} engines'} (about 20 s, longer for large models)")


def start_engine(
    model: str,
    config: EngineConfig,
    *,
    lora_rank: int | None = None,
    seed: int = 0,
    log_probs: int = 20,
    images: int = 1,
    banned: int = 0,
) -> "LLM":
    """Start an engine in this process.

    Args:
        model: checkpoint folder or name.
        config: engine settings.
        lora_rank: largest rank of the adapters it will serve; None serves none.
        seed: seed of requests that carry none.
        log_probs: most log-probabilities per token that a request may ask for.
        images: most images of a prompt.
        banned: most tokens that a request will ban.

    Raises:
        UserError: the model is not downloaded, not supported or broken, the rank is more than vLLM serves, vLLM does
            not serve the model with these settings, or the environment forbids so many banned tokens.
    """
    check_checkpoint(model)
    set_environment(config)
    choose_model_runner(model, banned)
    with _collector_paused():
        import torch
        from vllm import LLM
        from vllm.platforms import current_platform

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    options: dict[str, Any] = _options_on_cpu(config.max_model_len) if current_platform.is_cpu() else {}
    if config.kv_cache_gib is not None:
        options["kv_cache_memory_bytes"] = int(config.kv_cache_gib * GIB)
    if config.block_size is not None:
        options["block_size"] = config.block_size
    if lora_rank is not None:
        room = next((rank for rank in LORA_RANKS if rank >= lora_rank), None)
        if room is None:
            raise UserError(
                f"vLLM serves adapters up to rank {LORA_RANKS[-1]}: lower align.lora.rank from {lora_rank}."
            )
        options |= {"enable_lora": True, "max_lora_rank": room, "max_loras": LORA_SLOTS}
        options["max_cpu_loras"] = LORA_SLOTS
    try:
        engine = LLM(
            model=model,
            dtype=config.dtype,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            gpu_memory_utilization=config.gpu_memory_utilization,
            enforce_eager=config.enforce_eager,
            enable_prefix_caching=True,
            limit_mm_per_prompt={"image": images, "video": 0},  # no memory for videos, where the family has them
            mm_processor_cache_gb=IMAGE_CACHE_GIB,
            logprobs_mode="processed_logprobs",
            max_logprobs=log_probs,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            seed=seed % (1 << 32),  # vLLM seeds numpy, which takes no more bits
            **options,
        )
    except ValueError as error:
        raise _refused(model, error) from error
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return engine


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Collect no garbage while packages are imported, whose objects stay: it takes a fifth of vLLM's 10 s."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _refused(model: str, error: ValueError) -> UserError:
    """What vLLM says of a model that it does not serve with these settings, in one sentence."""
    from pydantic import ValidationError

    said = error.errors()[0]["msg"].partition(", ")[2] if isinstance(error, ValidationError) else str(error)
    said = " ".join(said.split())
    advice = "set align.rollout.sync=merged" if NO_ADAPTERS in said else "change the engine's settings or the model"
    return UserError(f"vLLM does not serve {model} as it is asked to ({said.rstrip('.')}): {advice}.")


def _options_on_cpu(max_model_len: int) -> dict[str, Any]:
    """Have prompts computed whole on CPU.

    After a part of a prompt vLLM takes back what it drew from the request's own seed, and generators on CPU cannot.
    """
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(CPU_BATCH_TOKENS, max_model_len)}


def reload_weights(engine: "LLM", weights: Iterable[tuple[str, "Tensor"]] | None = None) -> None:
    """Replace the weights of a running engine, which then serves as if it had started with them.

    Args:
        engine: with no request under way.
        weights: pairs of checkpoint name and tensor; None reads the checkpoint that the engine started from.

    Raises:
        RuntimeError: keys and values of the old weights could not be dropped.
    """
    engine.collective_rpc("reload_weights", kwargs={} if weights is None else {"weights_iterator": weights})
    # The keys and values in the prefix cache were computed with the old weights. The worker has dropped its image
    # features with them, so the scheduler must not count on those.
    engine.llm_engine.reset_encoder_cache()
    engine.llm_engine.reset_mm_cache()
    if not engine.reset_prefix_cache():
        raise RuntimeError("the engine did not drop its prefix cache")


def image_prompt(token_ids: Sequence[int], images: Sequence[Image]) -> "TokensPrompt":
    """Build a prompt of token ids, with one unexpanded image token for each image, and its images in order."""
    from vllm.inputs import TokensPrompt

    if not images:
        return TokensPrompt(prompt_token_ids=list(token_ids))
    return TokensPrompt(prompt_token_ids=list(token_ids), multi_modal_data={"image": list(images)})
