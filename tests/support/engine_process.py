"""A process that holds vLLM: it would leave threads, distributed groups and handlers in the tests' own."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Final

from fgaif_ray.config import EngineConfig

ENGINE: Final = EngineConfig(
    dtype="float32", max_model_len=1024, max_num_seqs=8, kv_cache_gib=0.1, enforce_eager=True, threads=1
)


@contextmanager
def engine_process() -> Iterator[ProcessPoolExecutor]:
    """One process that makes the calls submitted to it, one after the other; what it imports and starts stays there."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield process
