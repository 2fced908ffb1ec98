"""Guards: each fires for its own reason, after its patience, and survives a resume."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from fgaif_ray.config import GuardConfig
from fgaif_ray.rl.guards import (
    StepMetrics,
    TrainingGuards,
    TrainingStopped,
    identical_response_share,
)

HEALTHY = StepMetrics(
    kl=0.05,
    entropy=0.8,
    response_length=40.0,
    identical_share=0.1,
    missing_reward_share=0.0,
    facts_per_response=5.0,
)
CONFIG = GuardConfig(patience=3, baseline_steps=2)
TROUBLES = {
    "KL explosion": {"kl": 9.0},
    "entropy collapse": {"entropy": 0.001},
    "length collapse": {"response_length": 5.0},
    "coverage collapse": {"facts_per_response": 1.0},
    "identical responses": {"identical_share": 0.95},
    "repetition": {"repeated_share": 0.6},
    "unfinished responses": {"unfinished_share": 0.95},
    "length growth": {"response_length": 130.0},
    "missing rewards": {"missing_reward_share": 1.0},
    "non-finite streak": {"non_finite": True},
}


def started() -> TrainingGuards:
    """Guards past their baseline."""
    guards = TrainingGuards(CONFIG)
    guards.check(HEALTHY)
    guards.check(HEALTHY)
    return guards


@pytest.mark.parametrize("name", TROUBLES)
def test_a_guard_fires_after_its_patience_and_names_itself(name: str) -> None:
    guards, trouble = started(), replace(HEALTHY, **TROUBLES[name])  # type: ignore[arg-type]
    guards.check(trouble)
    guards.check(trouble)
    with pytest.raises(TrainingStopped) as stopped:
        guards.check(trouble)
    assert stopped.value.reason.startswith(f"{name}: ")


@pytest.mark.parametrize("name", TROUBLES)
def test_a_healthy_step_ends_a_streak(name: str) -> None:
    guards, trouble = started(), replace(HEALTHY, **TROUBLES[name])  # type: ignore[arg-type]
    for _ in range(4):
        guards.check(trouble)
        guards.check(trouble)
        guards.check(HEALTHY)


def test_a_guard_that_is_switched_off_never_fires() -> None:
    guards = TrainingGuards(CONFIG.model_copy(update={"max_kl": None, "max_non_finite_streak": None}))
    for _ in range(10):
        guards.check(replace(HEALTHY, kl=99.0))
        guards.check(replace(HEALTHY, non_finite=True))


def test_a_metric_that_is_not_a_number_counts_as_a_non_finite_step() -> None:
    guards, trouble = started(), replace(HEALTHY, kl=float("nan"))
    guards.check(trouble)
    guards.check(trouble)
    with pytest.raises(TrainingStopped, match="non-finite streak"):
        guards.check(trouble)


def test_a_non_finite_step_does_not_end_the_streak_of_another_guard() -> None:
    guards, trouble = started(), replace(HEALTHY, kl=9.0)
    guards.check(trouble)
    guards.check(replace(HEALTHY, non_finite=True))
    guards.check(trouble)
    with pytest.raises(TrainingStopped, match="KL explosion"):
        guards.check(trouble)


def test_short_responses_from_the_start_are_no_collapse() -> None:
    guards = TrainingGuards(CONFIG)
    for _ in range(10):
        guards.check(replace(HEALTHY, response_length=3.0, facts_per_response=0.0))


def test_streaks_and_baselines_survive_a_resume_through_json() -> None:
    guards, trouble = started(), replace(HEALTHY, response_length=5.0)
    guards.check(trouble)
    guards.check(trouble)
    resumed = TrainingGuards(CONFIG)
    resumed.load_state_dict(json.loads(json.dumps(guards.state_dict())))
    with pytest.raises(TrainingStopped, match="length collapse"):
        resumed.check(trouble)


def test_identical_response_share() -> None:
    assert identical_response_share(["a", "b", "a", "a"]) == 0.75
    assert identical_response_share(["a", "b"]) == 0.0
    assert identical_response_share(["a"]) == 0.0


def test_the_guard_configuration_reads_without_torch() -> None:
    code = "import sys, fgaif_ray.rl.guards; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
