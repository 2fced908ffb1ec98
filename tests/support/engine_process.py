"""A process that holds vLLM: it would leave threads, distributed groups and handlers in the tests' own."""

import gc
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, ParamSpec, TypeVar

from fgaif_ray.config import EngineConfig

ENGINE: Final = EngineConfig(
    dtype="float32", max_model_len=1024, max_num_seqs=8, kv_cache_gib=0.1, enforce_eager=True, threads=1
)

P = ParamSpec("P")
T = TypeVar("T")


class EngineProcess:
    """One process for calls that start engines: vLLM is imported once, and each call's engines end with it.

    Example: ``process.call(check_family, "llava", folder)``
    """

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def call(self, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """What a function returns there, or raises."""
        return self._pool.submit(_call, function, arguments, options).result()


def _call(function: Callable[..., T], arguments: Sequence[Any], options: Mapping[str, Any]) -> T:
    try:
        return function(*arguments, **options)
    finally:
        gc.collect()  # an engine, before the next one


@contextmanager
def engine_process() -> Iterator[EngineProcess]:
    """Start the process at the first call, and end it with the block."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield EngineProcess(pool)
