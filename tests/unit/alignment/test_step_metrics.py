"""What a step exports: what it has measured, whatever the algorithm measures."""

import pytest

from actors import metrics as exported
from actors.alignment import metrics
from fgaif_ray.rl.watch import progress_note

COMMON = {"count/tokens": 7.0, "update/skipped": 0.0, "timing/step": 1.5, "timing/update": 1.0}
OF_PREFERENCES = COMMON | {"dpo/loss": 0.6931, "dpo/told_apart": 0.5, "dpo/margin": 0.25}
OF_RLOO = COMMON | {
    "reward/total": 1.0, "reward/existence": 1.0, "hallucination/existence": 0.5, "facts/per_response": 2.0,
    "kl/per_response": 0.1, "kl/coefficient": 0.05, "policy/entropy": 1.0, "policy/clip_share": 0.0,
    "response/length": 9.0, "goodput/step_share": 0.9, "rollout/staleness": 0.0, "rollout/log_prob_difference": 0.0,
    "count/missing_rewards": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("measured", [OF_PREFERENCES, OF_RLOO], ids=["preferences", "no critic"])
def test_a_step_without_a_critic_or_rewards_is_exported(
    measured: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, float] = {}
    for name in ("PPO_STEP", "PPO_TOTAL_REWARD", "PPO_EXPLAINED_VARIANCE", "PPO_PHASE_DURATION"):
        one = getattr(exported, name)
        monkeypatch.setattr(type(one), "set", lambda self, value, **_: seen.__setitem__(self.name, value))
    metrics.record_step(3, 10, measured)
    assert seen[exported.PPO_STEP.name] == 3
    assert (exported.PPO_TOTAL_REWARD.name in seen) == ("reward/total" in measured)
    assert exported.PPO_EXPLAINED_VARIANCE.name not in seen


def test_a_step_on_preferences_has_a_line_of_its_own() -> None:
    assert progress_note(dict(OF_PREFERENCES)) == "loss 0.693, told apart 0.50, margin 0.25, 1.5 s/step"
