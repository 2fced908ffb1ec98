"""Tokens that are never sampled: as a bias of logits, and which of vLLM's model runners takes so many."""

import pytest

from actors.engine.bans import BAN, MOST_IDS, RUNNER_VARIABLE, choose_model_runner, logit_bias
from fgaif_ray.errors import UserError


def test_every_banned_token_gets_the_lowest_bias() -> None:
    assert logit_bias([3, 5]) == {3: BAN, 5: BAN}


def test_a_model_with_few_banned_tokens_leaves_the_choice_to_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RUNNER_VARIABLE, raising=False)
    choose_model_runner("model", MOST_IDS)
    monkeypatch.setenv(RUNNER_VARIABLE, "1")
    choose_model_runner("model", MOST_IDS)


def test_a_model_with_more_takes_the_runner_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv(RUNNER_VARIABLE, "0")  # so that it is put back
    monkeypatch.delenv(RUNNER_VARIABLE)
    choose_model_runner("model", MOST_IDS + 1)
    assert os.environ[RUNNER_VARIABLE] == "0"


@pytest.mark.parametrize("value", ["1", "true"])
def test_an_environment_that_asks_for_the_other_runner_is_told(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUNNER_VARIABLE, value)
    with pytest.raises(UserError, match=r"^org/model has 6,000 tokens .* bans 1,024 at most: unset VLLM_USE_V2"):
        choose_model_runner("org/model", 6000)
