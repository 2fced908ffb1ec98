"""A Ray that is started on this machine listens on loopback alone: on a network it would take commands from others."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import ray
from ray._private import ray_constants

from actors.cluster.authentication import is_loopback

MANY_NODES: Final = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Whether nodes of other machines can join, whatever the system is. Without, Ray has the address 127.0.0.1, as it does
on macOS; there is no option for it, and ``_node_ip_address`` makes the machine's own address of a loopback one."""


@contextmanager
def on_loopback() -> Iterator[None]:
    """Have a Ray that is started in the block, and what it starts, listen on 127.0.0.1."""
    before = os.environ.get(MANY_NODES), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[MANY_NODES], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        if before[0] is None:
            del os.environ[MANY_NODES]
        else:
            os.environ[MANY_NODES] = before[0]
        ray_constants.ENABLE_RAY_CLUSTER = before[1]


def keep_replica_on_loopback() -> None:
    """Have the replica of Serve that this process is listen on loopback where its node does.

    A replica takes pickled calls of other deployments at a port of its own, on every interface whatever the address of
    its node is. It is opened after the constructor of what is deployed, which calls this.
    """
    replica: Any = importlib.import_module("ray.serve._private.replica")
    add_port = replica.add_port_to_grpc_server

    def add_port_on_loopback(server: Any, address: str) -> int:
        port: int = add_port(server, address.replace("[::]", ray.util.get_node_ip_address()))
        return port

    if is_loopback(ray.util.get_node_ip_address()):
        replica.add_port_to_grpc_server = add_port_on_loopback
