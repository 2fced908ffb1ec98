"""A quick check whether a Ray cluster answers at an address; Ray itself tries silently for minutes."""

import contextlib
import os
import socket
import time
from typing import Final

from fgaif_ray.errors import UserError
from fgaif_ray.progress import say

ANSWER_S: Final = 20.0
"""Seconds to wait for a cluster that starts or comes back."""
TRY_S: Final = 5.0
RETRY_S: Final = 1.0
WITHOUT_A_PORT: Final = ("auto", "local")
"""Addresses that Ray resolves by itself."""
_HELLO: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""Start of an HTTP/2 connection with an empty SETTINGS frame, which every gRPC server answers with its own."""
_FRAME_HEAD: Final = 9
_SETTINGS: Final = 4


def check_cluster_address(address: str, timeout_s: float = ANSWER_S) -> None:
    """Return when something that may be a Ray head answers; says so where that takes longer than the first try.

    Raises:
        UserError: the address is malformed, or nothing answers within ``timeout_s``, or it is not Ray that does.
    """
    if address in WITHOUT_A_PORT:
        return
    host, port = _host_and_port(address)
    until = time.monotonic() + timeout_s
    announced = False
    while True:
        try:
            with socket.create_connection((host, port), timeout=TRY_S) as connection:
                _check_protocol(connection, address)
                return
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() >= until:
            raise UserError(
                f"No Ray cluster answers at {address} ({reason}): start one, correct ray.address (or RAY_ADDRESS), or "
                "unset it to start Ray on this machine."
            )
        if not announced:
            say(f"Waiting up to {timeout_s:.0f} s for the Ray cluster at {address} ({reason}).")
            announced = True
        time.sleep(RETRY_S)


def _host_and_port(address: str) -> tuple[str, int]:
    host, colon, port = address.removeprefix("ray://").partition("/")[0].rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError(
            f"ray.address (or RAY_ADDRESS) is host:port, e.g. 10.0.0.1:6379 or ray://10.0.0.1:10001, not {address!r}."
        )
    return host.strip("[]"), int(port)


def _check_protocol(connection: socket.socket, address: str) -> None:
    """Raise UserError if another kind of server answers; Ray with TLS is not checked."""
    if os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
        return
    answer = b""
    with contextlib.suppress(TimeoutError):
        connection.sendall(_HELLO)
        while len(answer) < _FRAME_HEAD and (more := connection.recv(_FRAME_HEAD - len(answer))):
            answer += more
    if len(answer) < _FRAME_HEAD or answer[3] != _SETTINGS:
        raise UserError(
            f"What answers at {address} is not a Ray cluster: give the port of its head, 6379 if none was chosen (the "
            "dashboard has another)."
        )
