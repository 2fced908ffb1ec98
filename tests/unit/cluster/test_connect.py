"""A Ray cluster that does not answer, and a start that takes too long, each end in one sentence."""

import http.server
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private import ray_constants

from actors.cluster import address, connect
from actors.cluster.address import check_cluster_address
from actors.cluster.loopback import MANY_NODES
from fgaif_ray.config import Config, load_config
from fgaif_ray.errors import UserError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "RETRY_S", 0.01)
    monkeypatch.setattr(address, "TRY_S", 0.2)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Takes connections and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server


def test_a_closed_port_is_announced_and_given_up(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(UserError, match=f"No Ray cluster answers at {where} .*correct ray.address"):
            check_cluster_address(where, timeout_s=0.05)
    assert "Waiting up to 0 s for the Ray cluster" in capsys.readouterr().out


def test_a_name_that_nobody_has_is_given_up() -> None:
    with pytest.raises(UserError, match=r"No Ray cluster answers at no-such-host\.invalid:6379"):
        check_cluster_address("no-such-host.invalid:6379", timeout_s=0)


def test_a_server_that_says_nothing_is_not_ray(listener: socket.socket) -> None:
    with pytest.raises(UserError, match="is not a Ray cluster"):
        check_cluster_address(f"127.0.0.1:{listener.getsockname()[1]}")


def test_a_dashboard_is_not_ray() -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(UserError, match="is not a Ray cluster"):
                check_cluster_address(f"ray://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()


def test_a_server_that_speaks_http_2_may_be_ray(listener: socket.socket) -> None:
    def greet() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"\0\0\0\4\0\0\0\0\0")
            while connection.recv(64):
                pass

    thread = threading.Thread(target=greet)
    thread.start()
    check_cluster_address(f"127.0.0.1:{listener.getsockname()[1]}")
    thread.join()


@pytest.mark.parametrize("wrong", ["head", "head:", ":6379", "head:port", "head:0", "http://head"])
def test_a_malformed_address_is_told(wrong: str) -> None:
    with pytest.raises(UserError, match=r"RAY_ADDRESS\) is host:port"):
        check_cluster_address(wrong)


class Starts:
    """Fails as Ray does on a busy machine, so many times."""

    def __init__(self, failures: int, words: str = "The current node timed out during startup. This could ...") -> None:
        self.left, self.words, self.calls = failures, words, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise Exception(self.words)


def test_a_slow_start_is_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    start = Starts(failures=1)
    connect.start_with_retry(start)
    assert start.calls == 2
    assert "trying once more" in capsys.readouterr().out


def test_a_machine_that_stays_too_busy_is_told() -> None:
    with pytest.raises(UserError, match="Ray did not start on this machine"):
        connect.start_with_retry(Starts(failures=9))


def test_another_failure_is_not_hidden() -> None:
    start = Starts(failures=1, words="out of disk")
    with pytest.raises(Exception, match="out of disk"):
        connect.start_with_retry(start)
    assert start.calls == 1


# What is connected to


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options with which Ray would be started, and whether it would be on loopback alone."""
    starts: list[dict[str, Any]] = []

    def init(**options: Any) -> None:
        on_loopback = (os.environ.get(MANY_NODES), ray_constants.ENABLE_RAY_CLUSTER) == ("0", False)
        starts.append(options | {"on_loopback": on_loopback, "callback": os.environ.get(CALLBACK)})

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr("ray.nodes", list)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="10.0.0.1:6379"))
    monkeypatch.setattr(connect, "check_cluster_address", lambda address: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return starts


CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"


def config_of(repository: Path, *changes: str) -> Config:
    return load_config(repository / "configs" / "shapes.yaml", changes)


def test_a_ray_that_is_started_here_listens_on_loopback_alone_and_its_proxies_are_protected(
    started: list[dict[str, Any]], repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CALLBACK, raising=False)
    with connect.connect(config_of(repository)):
        assert (os.environ.get(MANY_NODES), ray_constants.ENABLE_RAY_CLUSTER) == (None, True)
    [start] = started
    assert (start["address"], start["on_loopback"]) == ("local", True)
    assert start["callback"] == "actors.rewards.proxy:protect"


@pytest.mark.parametrize(("is_open", "closed", "warned"), [(True, False, 1), (True, True, 0), (False, False, 0)])
def test_a_cluster_that_takes_commands_from_anybody_is_warned_of(
    started: list[dict[str, Any]],
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_open: bool,
    closed: bool,
    warned: int,
) -> None:
    monkeypatch.setattr(connect, "is_open_to_anybody", lambda head: is_open and head == "10.0.0.1:6379")
    monkeypatch.setattr(connect, "NodeWatch", connect.nullcontext)
    with connect.connect(config_of(repository, "ray.address=10.0.0.1:6379", f"ray.closed_network={closed}")):
        pass
    [start] = started
    assert (start["address"], start["on_loopback"]) == ("10.0.0.1:6379", False)
    said = capsys.readouterr().out
    assert said.count("WARNING: the Ray cluster at 10.0.0.1:6379 runs the code of anybody") == warned
    assert said.count("RAY_AUTH_MODE=token") == warned
