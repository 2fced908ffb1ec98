"""Whether a head answers without a token: asked over real gRPC, from servers that stand for heads."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from actors.cluster import authentication
from actors.cluster.authentication import is_loopback, is_open_to_anybody


@contextmanager
def head(answer: Callable[[grpc.ServicerContext], bytes]) -> Iterator[str]:
    """The address of a server that answers the probe."""

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            if details.method != authentication.PROBE:
                return None
            return grpc.unary_unary_rpc_method_handler(lambda request, context: answer(context))

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


def refuse(context: grpc.ServicerContext) -> bytes:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
    raise AssertionError


@pytest.fixture
def on_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "is_loopback", lambda host: False)


@pytest.mark.usefixtures("on_a_network")
def test_a_head_that_answers_without_a_token_is_open() -> None:
    with head(lambda context: b"") as address:
        assert is_open_to_anybody(address)


@pytest.mark.usefixtures("on_a_network")
def test_a_head_that_wants_a_token_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with head(refuse) as address:
        assert not is_open_to_anybody(address)
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # of this process, not of the head
        assert not is_open_to_anybody(address)


@pytest.mark.usefixtures("on_a_network")
def test_nobody_there_is_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "PROBE_S", 1.0)
    assert not is_open_to_anybody("127.0.0.1:9")


def test_a_head_on_loopback_is_open_to_nobody_else() -> None:
    with head(lambda context: b"") as address:
        assert not is_open_to_anybody(address)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("10.0.0.1", False), ("h", False)],
)
def test_only_loopback_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
