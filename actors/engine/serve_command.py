"""The command line with which vLLM serves the aligned model to other evaluation harnesses."""

import os
from typing import Any, Final

from actors.engine.start import GIB
from fgaif_ray import storage
from fgaif_ray.cluster.resources import LORA_RANKS
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.storage import stages
from fgaif_ray.vlm.checkpoint import check_adapter

BASE_NAME: Final = "base"
ALIGNED_NAME: Final = "aligned"
HOST: Final = "127.0.0.1"
PORT: Final = 8000
URL: Final = f"http://{HOST}:{PORT}/v1"


def serving_command(config: Config) -> list[str]:
    """The words of the command that serves the policy as it is (``base``) and as it was aligned (``aligned``).

    Raises:
        UserError: the policy has not been aligned yet, or lies on no local disk.
    """
    stages.require(config.run.dir, stages.POLICY)
    adapter = storage.join(config.run.dir, stages.POLICY)
    if not storage.is_local(adapter):
        raise UserError(f"vLLM serves adapters from local folders: copy {adapter} to one and give its run folder.")
    rank = check_adapter(adapter)
    room = next((room for room in LORA_RANKS if room >= rank), None)
    if room is None:
        raise UserError(f"vLLM serves adapters up to rank {LORA_RANKS[-1]}: lower align.lora.rank from {rank}.")
    engine = config.evaluate.engine
    options: dict[str, Any] = {
        "--served-model-name": BASE_NAME,
        "--lora-modules": f"{ALIGNED_NAME}={os.path.abspath(adapter.removeprefix('file://'))}",
        "--max-lora-rank": room,
        "--dtype": engine.dtype,
        "--max-model-len": engine.max_model_len,
        "--max-num-seqs": engine.max_num_seqs,
        "--gpu-memory-utilization": engine.gpu_memory_utilization,
        "--limit-mm-per-prompt": '{"image": 1}',
        "--host": HOST,
        "--port": PORT,
    }
    if engine.kv_cache_gib is not None:
        options["--kv-cache-memory-bytes"] = int(engine.kv_cache_gib * GIB)
    words = ["vllm", "serve", config.policy.model, "--enable-lora"]
    words += [str(part) for pair in options.items() for part in pair]
    return words + (["--enforce-eager"] if engine.enforce_eager else [])
