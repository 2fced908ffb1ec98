"""Whether a Ray cluster takes commands from anybody who reaches its ports: one call is enough to run code on it.

Its head is asked, without a token. What this process has in RAY_AUTH_MODE does not tell: a head that was started
without a token takes calls with one too.
"""

import ipaddress
import os
from typing import Final

import grpc
import ray

from fgaif_ray.config import RayConfig
from fgaif_ray.errors import UserError
from fgaif_ray.serving.bearer_token import read_token

PROBE: Final = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""A call of the head that changes nothing; empty, it asks about no node."""
PROBE_S: Final = 10.0
ADVICE: Final = (
    "start it with RAY_AUTH_MODE=token (docs/operations.md), or set ray.closed_network=true where a firewall lets "
    "nobody else reach its ports"
)


def is_open_to_anybody(gcs_address: str) -> bool:
    """Tell whether the head at ``host:port`` is on a network and answers calls without a token.

    False where it does not answer at all, and with TLS, which asks for a certificate.
    """
    host = gcs_address.rpartition(":")[0].strip("[]")
    if is_loopback(host) or os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
        return False
    with grpc.insecure_channel(gcs_address) as channel:
        try:
            channel.unary_unary(PROBE)(b"", timeout=PROBE_S)
        except grpc.RpcError as error:
            return error.code() not in (grpc.StatusCode.UNAUTHENTICATED, *_NO_ANSWER)
    return True


_NO_ANSWER: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def is_loopback(host: str) -> bool:
    """Tell whether an address is reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_callers_token(variable: str, settings: RayConfig, host: str, key: str) -> str | None:
    """Read the token that callers of endpoints must send; None lets everyone in, which is for loopback only.

    Args:
        variable: of the environment.
        settings: say whether a firewall closes the network.
        host: that the endpoints listen on.
        key: of the configuration that says so.

    Raises:
        UserError: the token cannot be sent, or endpoints or cluster would be open to the network.
    """
    token = read_token(variable)
    if token is None and not is_loopback(host):
        raise UserError(
            f"{key}={host} is open to the network: set {variable} in the environment, or serve on 127.0.0.1."
        )
    _refuse_open_cluster(settings, host, key)
    return token


def _refuse_open_cluster(settings: RayConfig, host: str, key: str) -> None:
    """Raise UserError where a token would guard the endpoints of a cluster that runs anybody's code."""
    if is_loopback(host) or settings.closed_network or not ray.is_initialized():
        return
    head = ray.get_runtime_context().gcs_address
    if is_open_to_anybody(head):
        raise UserError(
            f"{key}={host} is open to the network, and so is the Ray cluster at {head}, which runs "
            f"the code of anybody who reaches its ports, whatever token the endpoints want: {ADVICE}."
        )
