"""What the guard is deployed with, and what it refuses before anything is started."""

from typing import Any

import pytest

from actors.guard import service as guard_service
from fgaif_ray.config import guard_tree
from fgaif_ray.errors import UserError
from jobs.cli import main

UPSTREAM = "http://127.0.0.1:8001/v1"
REWARDS = "http://127.0.0.1:8000"


@pytest.fixture(autouse=True)
def no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (guard_service.GUARD_TOKEN_VARIABLE, "FGAIF_REWARD_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def settings_of(*changes: str, key: str | None = None) -> guard_service.GuardSettings:
    tree = guard_tree([f"guard.upstream={UPSTREAM}", *changes])
    return guard_service.guard_settings(tree, tree.guard, REWARDS, key)


def deployment_of(*changes: str) -> Any:
    return guard_service.build_application(settings_of(*changes))._bound_deployment


def test_replicas_follow_the_requests_in_flight() -> None:
    scaling = deployment_of(
        "guard.min_replicas=2", "guard.max_replicas=5", "guard.target_requests=3"
    )._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 3)


def test_replicas_are_placed_as_configured() -> None:
    options = deployment_of("guard.num_cpus=0.5", "guard.label_selector={role: edge}").ray_actor_options
    assert (options["num_cpus"], options["label_selector"]) == (0.5, {"role": "edge"})


def test_a_replica_that_stops_lets_its_answers_end() -> None:
    assert deployment_of("guard.request_timeout_s=33")._deployment_config.graceful_shutdown_timeout_s == 33


@pytest.mark.parametrize(("longest", "retry_after"), [(1, True), (100, False)])
def test_who_would_wait_too_long_is_turned_away(longest: float, retry_after: bool) -> None:
    """Ten answers a second, and thirty are waiting."""
    guard = guard_service.ChatGuard(settings_of(f"guard.max_wait_s={longest}"))
    now = 0.0
    guard._admission._clock = lambda: now
    guard._admission._since = now
    guard._admission.enter(40)
    now = 1.0
    guard._admission.leave(10, 10)
    assert (guard._admission.refusal(5) is not None) == retry_after


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGAIF_REWARD_TOKEN", "secret-of-the-rewards")
    monkeypatch.setenv(guard_service.GUARD_TOKEN_VARIABLE, "secret-of-the-guard")
    settings = settings_of(key="secret-of-the-endpoint")
    assert (settings.key, settings.rewards_token) == ("secret-of-the-endpoint", "secret-of-the-rewards")
    assert "secret" not in repr(settings)


def test_without_a_token_it_listens_on_loopback_only() -> None:
    with pytest.raises(UserError, match=r"FGAIF_GUARD_TOKEN"):
        settings_of("guard.host=0.0.0.0")


def test_a_token_lets_it_listen_on_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(guard_service.GUARD_TOKEN_VARIABLE, "a-token")
    assert settings_of("guard.host=0.0.0.0").token_digest is not None


@pytest.mark.parametrize("address", ["localhost:8001/v1", "ftp://a/v1"])
def test_an_endpoint_is_a_url(address: str) -> None:
    with pytest.raises(UserError, match=r"--upstream http://HOST:PORT/v1"):
        settings_of(f"guard.upstream={address}")


# The command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--upstream http://HOST:PORT/v1"),
        (["--upstream", UPSTREAM], "Give --rewards http://HOST:PORT"),
        (["--upstream", UPSTREAM, "--mode", "best"], "guard.mode"),
        (["--upstream", UPSTREAM, "--set", "guard.treshold=0.4"], "guard.threshold"),
        (["--upstream", UPSTREAM, "--set", "policy.model=x"], "policy"),
        (["--upstream", UPSTREAM, "--config", "configs/shapes.yaml", "--set", "run.dir=/nowhere"], "no reward model"),
    ],
)
def test_what_is_missing_or_wrong_is_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("guard", arguments) == 2
    assert message in capsys.readouterr().err
