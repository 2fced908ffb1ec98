"""Environment of every test, and what they share: one local Ray cluster, and one process that holds vLLM.

The variables are set before anything imports ray, vllm or transformers, which read them at import.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from support.engine_process import EngineProcess
    from support.local_nodes import LocalNodes

ENVIRONMENT = {
    # Nothing is fetched and nothing is reported.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Two cores are shared by several processes: each takes one thread, and vLLM pins none of them.
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # A cluster of the test's own on loopback; a token would be written into the home folder.
    "RAY_AUTH_MODE": "disabled",
    # As a job starts it.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "actors.rewards.proxy:protect",
    "RAY_TRAIN_V2_ENABLED": "1",
    # Ray Train looks every two seconds whether its workers have started or ended.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Serve kills a proxy that takes longer than five seconds to answer, which one that starts on a busy machine does.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "MPLBACKEND": "Agg",
}
for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
# Endpoints are local servers: no test may reach a paid one by a key left in the shell.
os.environ.pop("OPENAI_API_KEY", None)
os.environ.pop("OPENAI_BASE_URL", None)

settings.register_profile("without a deadline", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("without a deadline")

LONGEST_RAY_FOLDER = 30
"""Characters: Ray's sockets lie about 70 below its folder, and a Unix socket's path holds 107."""


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[dict[str, Any]]:
    """A local Ray cluster of eight logical CPUs for the whole session; yields its context.

    Logical: actors and replicas declare what they need to be placed, and share the real cores.
    """
    import ray

    from actors.cluster.loopback import on_loopback

    parent = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="ray", dir=parent if len(parent) < LONGEST_RAY_FOLDER else "/tmp")
    with on_loopback():  # as a job starts it
        context = ray.init(
            address="local",
            num_cpus=8,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=300 * 1024**2,
            _temp_dir=folder,
        )
    try:
        yield dict(context.address_info)
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def vllm_process() -> "Iterator[EngineProcess]":
    """A process of its own that imports vLLM once, for calls that start engines, one after the other."""
    from support.engine_process import engine_process

    with engine_process() as process:
        yield process


@pytest.fixture
def nodes() -> "Iterator[LocalNodes]":
    """A cluster of local nodes that a test adds and loses."""
    from support.local_nodes import LocalNodes

    with LocalNodes() as started:
        yield started


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder that holds the packages."""
    return Path(__file__).resolve().parent.parent
