"""Evaluation while training: what is measured, and which policy is the best."""

import json
import math
from typing import Any

import pytest
from support.ppo_steps import difference, new_model, trajectory

from fgaif_ray.config import AlignConfig, Config, load_config
from fgaif_ray.evaluation.hallucination import Description
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.rl.held_out import BestPolicy, held_out_metrics
from fgaif_ray.rl.kept_policy import KeptPolicy
from fgaif_ray.rl.trajectories import Trajectory, reward_trajectory
from fgaif_ray.shapes.scenes import draw_scene

ABSENT, TRUE, FALSE = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]


def said(index: int, verdicts: list[list[list[float]]], **changes: Any) -> Trajectory:
    """A response with a segment for each token, judged so."""
    count = len(verdicts)
    spans = {"segment_spans": ((0, 1),) * count, "token_ends": tuple(range(count)), "token_rewards": None}
    row = trajectory(index, [7] * count, [0.0] * count, response="x", **(spans | changes))
    return reward_trajectory(row, verdicts, RewardOptions(weights=dict.fromkeys(FACT_TYPES, 1.0)))


def test_a_segment_with_one_false_fact_is_hallucinated_and_one_without_facts_is_not_counted() -> None:
    first = said(0, [[TRUE, FALSE, ABSENT], [ABSENT, ABSENT, ABSENT], [TRUE, TRUE, TRUE]])
    second = said(1, [[TRUE, ABSENT, ABSENT]], finish_reason="length")
    found = held_out_metrics([first, second], FACT_TYPES)
    overall, unfinished = found["evaluation/hallucination/overall"], found["evaluation/response/unfinished_share"]
    assert (overall, overall.weight) == (pytest.approx(1 / 3), 3)
    assert (unfinished, unfinished.weight) == (0.5, 2)
    assert found["evaluation/reward/total"] == pytest.approx((3 + 1) / 2)
    assert found["evaluation/facts/per_response"] == 3.0
    assert not any("truth" in name for name in found)


def test_the_truth_judges_the_text() -> None:
    scene = draw_scene("train", 3)
    right = " ".join(f"There is a {one.size} {one.color} {one.shape}." for one in scene.objects)
    rows = [said(index, [[TRUE, TRUE, TRUE]]) for index in range(2)]
    texts = (right, "There is nothing here.")
    found = held_out_metrics(rows, FACT_TYPES, [Description("a.png", scene, text, True) for text in texts])
    assert found["evaluation/truth/hallucination/overall"] == 0
    assert found["evaluation/truth/coverage"] == pytest.approx(0.5)
    with_one = held_out_metrics(rows[:1], FACT_TYPES, [Description("a.png", scene, right, True)])
    assert with_one["evaluation/truth/coverage"] == 1


def evaluated(metric: str, value: float, facts: float = 3.0, **more: float) -> dict[str, float]:
    return {f"evaluation/{metric}": value, "evaluation/facts/per_response": facts, **more}


@pytest.fixture(scope="module")
def best_of() -> Any:
    model = new_model()

    def choose(metric: str, values: list[tuple[float, float]], least: float = 0.0) -> BestPolicy:
        best = BestPolicy(KeptPolicy(model), metric, least)
        for step, (value, facts) in enumerate(values):
            best.consider(step, evaluated(metric, value, facts))
        return best

    return choose


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("reward/total", (2, 5.0)), ("hallucination/overall", (3, 1.0)), ("truth/coverage", (2, 5.0))],
)
def test_the_metric_says_which_end_is_the_best(best_of: Any, metric: str, expected: tuple[int, float]) -> None:
    best = best_of(metric, [(9.0, 3.0), (2.0, 3.0), (5.0, 3.0), (1.0, 3.0), (math.nan, 3.0), (5.0, 3.0), (1.0, 3.0)])
    assert (best.step, best.value) == expected  # of equals the first, and never the policy before the first step


def test_a_policy_that_says_too_little_is_not_the_best(best_of: Any) -> None:
    values = [(0.3, 4.0), (0.2, 3.9), (0.1, 3.0), (0.15, 3.88)]
    assert best_of("hallucination/overall", values, least=0.97).step == 3
    assert best_of("hallucination/overall", values).step == 2
    assert best_of("hallucination/overall", values, least=1.5).step is None


def test_coverage_is_what_a_policy_says_where_it_is_known() -> None:
    best = BestPolicy(KeptPolicy(new_model()), "hallucination/overall", 0.9)
    best.consider(0, evaluated("hallucination/overall", 0.3, 4.0, **{"evaluation/truth/coverage": 0.8}))
    best.consider(1, evaluated("hallucination/overall", 0.1, 9.0, **{"evaluation/truth/coverage": 0.7}))
    assert best.step is None


def test_a_resumed_choice_is_the_uninterrupted_one() -> None:
    model = new_model()
    best, resumed = (BestPolicy(KeptPolicy(model), "reward/total", 0.5) for _ in range(2))
    best.consider(0, evaluated("reward/total", 0.0))
    best.consider(1, evaluated("reward/total", 2.0))
    resumed.load_state_dict(json.loads(json.dumps(best.state_dict())))
    resumed.kept.load_state_dict(best.kept.state_dict())
    resumed.consider(2, evaluated("reward/total", 1.0))
    resumed.consider(3, evaluated("reward/total", 3.0, facts=1.0))
    assert (resumed.step, resumed.value) == (1, 2.0)
    assert difference(resumed.kept.state_dict(), best.kept.state_dict()) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"best_by": "reward/total"}, r"set align\.evaluate_every"),
        ({"evaluate_every": 2, "best_by": "kl/per_token"}, "is not a metric of the evaluations"),
        ({"evaluate_every": 2, "evaluate_images": 1, "num_workers": 2}, r"raise it, or lower align\.num_workers"),
    ],
)
def test_what_cannot_choose_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlignConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("reward/colour", "there are reward/total, reward/existence"),
        ("truth/hallucination/novelty", "there are truth/"),
    ],
)
def test_types_that_the_run_does_not_have_cannot_choose(metric: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        load_config("configs/shapes.yaml", ["align.evaluate_every=2", f"align.best_by={metric}"])


def test_the_truth_chooses_only_where_it_is_known() -> None:
    tree = load_config("configs/shapes.yaml", ["align.evaluate_every=2"]).model_dump(mode="json")
    tree["align"]["best_by"] = "truth/coverage"
    assert Config.model_validate(tree).align.best_by == "truth/coverage"
    tree["data"] |= {"source": "folder", "path": "images"}
    with pytest.raises(ValueError, match=r"the truth is known of data\.source=shapes alone"):
        Config.model_validate(tree)
