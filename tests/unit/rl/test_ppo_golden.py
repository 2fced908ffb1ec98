"""Two PPO steps in figures that were written down before other algorithms came: the seam has changed none of them."""

import json
from pathlib import Path

import pytest
from support.ppo_steps import experience, new_model, toy_responses, update

GOLDEN = Path(__file__).with_suffix(".json")


def two_steps() -> dict[str, float]:
    model = new_model()
    found = {}
    for step in range(2):
        data = experience(model, toy_responses(seed=step), lost=frozenset({3}))
        metrics = data.metrics | update(model, data)
        found |= {f"{step}/{name}": value for name, value in metrics.items()}
    for name, parameters in (("policy", model.policy_parameters()), ("critic", model.critic_parameters())):
        found[f"{name} moved"] = sum(float(one.detach().double().square().sum()) for one in parameters.values()) ** 0.5
    return found


def test_ppo_is_what_it_was() -> None:
    golden, found = json.loads(GOLDEN.read_text()), two_steps()
    assert {name: found[name] for name in golden} == pytest.approx(golden, rel=2e-3, abs=1e-5)
