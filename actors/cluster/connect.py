"""Joining a Ray cluster, or starting Ray on this machine."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final, Protocol

import ray

from actors.cluster.address import check_cluster_address
from actors.cluster.authentication import ADVICE, is_open_to_anybody
from actors.cluster.device import LOGICAL_GPUS
from actors.cluster.loopback import on_loopback
from actors.cluster.lost_nodes import NodeWatch
from actors.cluster.quiet import quiet_loggers, quiet_progress, without_lines
from fgaif_ray.config import RayConfig
from fgaif_ray.errors import UserError
from fgaif_ray.progress import say

GIB = 1 << 30
LOCAL_ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "actors.rewards.proxy:protect",
}
"""Of a Ray that is started here, unless it is set."""
START_TRIES = 2
NOT_STARTED = ("timed out during startup", "Failed to start GCS", "Failed to get node info")
"""Ray's messages about a start on this machine that took too long."""
VERSION_MISMATCH = "Version mismatch"


class HasRay(Protocol):
    """A configuration that says how Ray is reached."""

    @property
    def ray(self) -> RayConfig:
        """The section."""
        ...


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the process's handler of SIGTERM, which `ray.init` replaces with one that ends the process silently.

    `ray job stop` sends SIGTERM: a job then says how to go on, and ends with the status of an interrupted one.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        yield
    except SystemExit as error:  # Ray's handler, before this one is back
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGTERM, handler)


def start_with_retry(start: Callable[[], object]) -> None:
    """Start Ray on this machine; retry once if a busy machine did not let it come up in time.

    Raises:
        UserError: it did not come up either time.
    """
    for attempt in range(START_TRIES):
        try:
            start()
        except Exception as error:  # Ray raises plain exceptions of all kinds here
            if not any(words in str(error) for words in NOT_STARTED):
                raise
            ray.shutdown()
            if attempt == START_TRIES - 1:
                raise UserError(
                    f"Ray did not start on this machine ({str(error).splitlines()[0].strip().rstrip('.')}): end other "
                    "programs that keep it busy, then run the same command again."
                ) from error
            say("Ray did not start in time, perhaps as the machine is busy: trying once more.")
        else:
            return


def cluster_address(config: HasRay) -> str | None:
    """Of the cluster that jobs join; None where they start Ray on this machine, which then needs every model."""
    return config.ray.address or os.environ.get("RAY_ADDRESS") or None


def _warn_of_open_cluster(config: HasRay) -> None:
    head = ray.get_runtime_context().gcs_address
    if not config.ray.closed_network and is_open_to_anybody(head):
        say(f"WARNING: the Ray cluster at {head} runs the code of anybody who reaches its ports: {ADVICE}.")


@contextmanager
def connect(config: HasRay) -> Iterator[None]:
    """Stay connected to Ray inside the block; the outermost block of a process that opened the connection closes it.

    A submitted job, or ``ray.address``, joins that cluster, and says which of its nodes are lost meanwhile; otherwise
    Ray starts here, on loopback alone, for the time of the block. A cluster that takes commands from anybody is warned
    of.

    Raises:
        UserError: the cluster at ``ray.address`` cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in LOCAL_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if config.ray.logical_gpus is not None:
        os.environ[LOGICAL_GPUS] = "1"  # the workers of a Ray started here inherit it
    address = cluster_address(config)
    logging_level = logging.INFO if config.ray.log_to_driver else logging.ERROR
    common: dict[str, Any] = {
        "log_to_driver": config.ray.log_to_driver,
        "logging_level": logging_level,
        "ignore_reinit_error": False,
    }
    with nullcontext() if config.ray.log_to_driver else without_lines():
        try:
            with _own_sigterm():
                if address is not None:
                    check_cluster_address(address)
                    ray.init(address=address, **common)
                    _warn_of_open_cluster(config)
                else:
                    say("Starting Ray on this machine (about 10 s).")
                    with on_loopback():
                        start_with_retry(
                            lambda: ray.init(
                                address="local",
                                num_cpus=config.ray.num_cpus,
                                num_gpus=config.ray.logical_gpus,
                                include_dashboard=False,
                                object_store_memory=int(config.ray.object_store_gib * GIB),
                                **common,
                            )
                        )
        except ConnectionError as error:
            raise UserError(f"No Ray cluster answers at {address}: start one, or unset ray.address.") from error
        except RuntimeError as error:
            if VERSION_MISMATCH not in str(error):
                raise
            raise UserError(
                f"The Ray cluster at {address} runs other versions of Ray or Python than this environment: install the "
                "cluster's here, or start the cluster from this environment."
            ) from error
        quiet_progress()
        if not config.ray.log_to_driver:
            quiet_loggers()
        try:
            with nullcontext() if address is None else NodeWatch():
                yield
        finally:
            ray.shutdown()
