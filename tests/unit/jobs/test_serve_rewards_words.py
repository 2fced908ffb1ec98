"""What `fgaif serve-rewards` says once the service is there."""

import pytest

from fgaif_ray.serving.wire import TOKEN_VARIABLE
from jobs.serve_rewards import invitation

URL = "http://127.0.0.1:8000"


def test_the_address_of_the_playground_is_said() -> None:
    assert f"Playground: {URL}/playground" in invitation(URL, "v1").splitlines()


def test_the_example_carries_a_token_where_one_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert "Authorization" not in invitation(URL, "v1")
    monkeypatch.setenv(TOKEN_VARIABLE, "a-token")
    said = invitation(URL, "v1")
    assert f"Bearer ${TOKEN_VARIABLE}" in said and "a-token" not in said
