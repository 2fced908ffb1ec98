"""What the reward service is deployed with, before anything is started: its token and its gateways."""

import os
from pathlib import Path
from typing import Any

import pytest
from support.reward_helpers import save_reward_models, service_config

from actors.rewards import service as reward_service
from fgaif_ray.cluster import resources
from fgaif_ray.errors import UserError

URL = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_reward_models(tmp_path_factory.mktemp("rewards"))


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FGAIF_REWARD_TOKEN", raising=False)


@pytest.mark.parametrize("token", ["secret\n", "\n", "se cret", "s\u00e9cret", "\u2019secret"])
def test_a_token_that_no_client_could_send_is_refused_without_being_shown(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("FGAIF_REWARD_TOKEN", token)
    with pytest.raises(UserError, match="FGAIF_REWARD_TOKEN has white space, a line break or") as error:
        reward_service.build_application(service_config(tmp_path), folders, URL)
    assert "cret" not in str(error.value)


def gateway_of(config: Any, folders: dict[str, str]) -> tuple[int, int]:
    """Number of gateways, and the items that each lets wait."""
    bound = reward_service.build_application(config, folders, URL)._bound_deployment
    return bound.num_replicas, bound.init_args[0].max_waiting_items


@pytest.mark.parametrize(
    ("processors", "gateways", "expected"),
    [(2, None, (1, 101)), (4, None, (2, 51)), (64, None, (2, 51)), (2, 3, (3, 34)), (64, 1, (1, 101))],
)
def test_two_gateways_share_what_may_wait_where_there_is_room(
    folders: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processors: int,
    gateways: int | None,
    expected: tuple[int, int],
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(processors)))
    config = service_config(tmp_path, gateways=gateways, max_waiting_items=101)
    assert gateway_of(config, folders) == expected
    assert resources.reward_gateway(config).count == expected[0]
