"""Variants, what they have in common, statistics, and the figures read from a run."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.labelled import response
from support.report_run import answer_row

from fgaif_ray.audit.human import majority_labels, read_answers
from fgaif_ray.config import Config, load_config
from fgaif_ray.errors import UserError
from fgaif_ray.experiments.metrics import RunMetric, read_figures
from fgaif_ray.experiments.page import build_page
from fgaif_ray.experiments.results import DONE, FAILED, OVER_IMAGES, OVER_SEEDS, RunOutcome, build_results
from fgaif_ray.experiments.sharing import (
    BEFORE,
    EVALUATION,
    FEEDBACK,
    PLANNED,
    POLICY,
    RESPONSES,
    REWARDS,
    VERDICTS,
    plan_lines,
    plan_runs,
)
from fgaif_ray.experiments.truth import reward_accuracy, truth_answers
from fgaif_ray.experiments.variants import NAMES, build_experiment, build_runs
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rewards.encoding import ScoringItem
from fgaif_ray.shapes.scenes import Scene, SceneObject
from fgaif_ray.statistics.paired import mean_interval, paired_difference, student_t_cdf, student_t_quantile
from fgaif_ray.storage.planned_stages import planned_keys

RUN = "runs/x"
WITH_FACTS = [[1000, 7, 0], [3, 30, 10], [2, 5, 5]]
"""Counts of absent, consistent and hallucinated, rows by the truth."""
WITHOUT_FACTS = [[1000, 7, 0], [3, 0, 0], [2, 0, 0]]


def base(*overrides: str) -> Config:
    return load_config("configs/shapes.yaml", [f"run.dir={RUN}", *overrides])


def shared(experiment: str, first: str, second: str) -> set[str]:
    """The stages that two variants have in common."""
    return shared_between((experiment, first), (experiment, second))


def shared_between(first: tuple[str, str], second: tuple[str, str]) -> set[str]:
    """The stages that two variants, each of an experiment, have in common."""
    config = base()
    keys = []
    for experiment, variant in (first, second):
        runs = build_runs(build_experiment(experiment, config), config, [0])
        keys.append(next(planned_keys(run.config) for run in runs if run.variant.name == variant))
    one, other = keys
    return {stage for stage in PLANNED if one[stage] == other[stage]}


@pytest.mark.parametrize("name", NAMES)
def test_every_variant_of_every_experiment_is_a_valid_configuration(name: str) -> None:
    config = base()
    experiment = build_experiment(name, config)
    runs = build_runs(experiment, config, [0, 1])
    assert len({run.folder for run in runs}) == len(runs) == 2 * len(experiment.variants)


def test_variants_that_differ_in_ppo_alone_share_everything_before() -> None:
    assert shared("ablation", "full", "wo-object") == {RESPONSES, VERDICTS, FEEDBACK, REWARDS, BEFORE}


def test_levels_of_noise_share_responses_and_verdicts() -> None:
    assert shared("noise", "none", "all-40") == {RESPONSES, VERDICTS, BEFORE}


def test_human_labels_share_responses_and_verdicts() -> None:
    assert shared("ablation", "full", "human") == {RESPONSES, VERDICTS, BEFORE}


def test_kinds_of_reward_models_share_labels() -> None:
    assert shared("unified", "separate", "multitask") == {RESPONSES, VERDICTS, FEEDBACK, BEFORE}


@pytest.mark.parametrize(("experiment", "variant"), [("ablation", "coarse"), ("unified", "coarse"), ("cost", "coarse")])
def test_one_verdict_per_response_takes_no_length_term(experiment: str, variant: str) -> None:
    config = base("align.reward.length_penalty=0.1", "align.reward.length_target=40")
    runs = {run.variant.name: run.config for run in build_runs(build_experiment(experiment, config), config, [0])}
    penalties = {name: run.align.reward.length_penalty for name, run in runs.items()}
    assert penalties == {name: 0 if name == variant else 0.1 for name in runs}


def test_all_experiments_train_one_coarse_policy() -> None:
    assert shared_between(("ablation", "coarse"), ("unified", "coarse")) == set(PLANNED)
    assert shared_between(("ablation", "coarse"), ("cost", "coarse")) == set(PLANNED)


def test_other_scenes_to_evaluate_on_share_the_aligned_policy() -> None:
    assert shared("ood", "plain-heldout", "plain-fog") == set(PLANNED) - {BEFORE, EVALUATION}


def test_augmented_images_share_the_answers_before_alignment_alone() -> None:
    assert shared("ood", "plain-fog", "augmented-fog") == {BEFORE}


def test_blind_variants_share_all_that_comes_before_what_is_blind() -> None:
    labelled = {RESPONSES, VERDICTS, FEEDBACK, BEFORE}
    assert shared("blind", "seeing", "swapped") == shared("blind", "swapped", "blank") == labelled
    assert shared("blind", "seeing", "blank-policy") == labelled | {REWARDS}
    assert shared("blind", "blank", "blank-both") == labelled | {REWARDS}


def test_the_seeing_variant_is_the_reference_of_other_experiments() -> None:
    assert shared_between(("blind", "seeing"), ("ablation", "full")) == set(PLANNED)


def test_a_configuration_that_is_blind_already_is_refused() -> None:
    with pytest.raises(UserError, match=r"sets data\.blind itself"):
        build_experiment("blind", base("data.blind.policy=blank"))


def test_what_is_left_without_the_image_is_a_share_of_what_the_seeing_has() -> None:
    """Seed 1 has removed nothing with images, so nothing can be left of it."""
    found = {
        ("seeing", 0): {"removed": 0.2, "rewards_present.mean": 0.9},
        ("seeing", 1): {"removed": -0.1, "rewards_present.mean": 0.8},
        ("blank", 0): {"removed": 0.05, "rewards_present.mean": 0.6},
        ("blank", 1): {"removed": 0.05, "rewards_present.mean": 0.5},
    }
    outcomes = [
        RunOutcome(variant, seed, "", DONE, {name: RunMetric(value) for name, value in figures.items()})
        for (variant, seed), figures in found.items()
    ]
    results = build_results(build_experiment("blind", base(), ["blank"]), outcomes)
    seeing, blank = (variant["figures"] for variant in results["variants"])
    assert blank["left.removed"]["by_seed"] == {"0": pytest.approx(0.25)}
    assert blank["left.rewards"]["by_seed"] == {"0": pytest.approx(0.25), "1": pytest.approx(0.0)}
    assert blank["left.rewards"]["mean"] == pytest.approx(0.125)
    assert seeing["left.rewards"]["mean"] == pytest.approx(1)
    assert "left.rewards_after" not in blank
    page = build_page(results, "fgaif experiment blind", [])
    assert page.index("What is left of what the reference has") < page.index("Hallucinated segments")


def test_seeds_share_nothing() -> None:
    config = base()
    one, other = (
        planned_keys(run.config) for run in build_runs(build_experiment("cost", config, ["fine"]), config, [0, 1])
    )
    assert all(one[stage] != other[stage] for stage in PLANNED)


def test_the_reference_of_two_experiments_is_the_same_run() -> None:
    config = base()
    keys = [
        planned_keys(build_runs(build_experiment(name, config), config, [0])[0].config)
        for name in ("ablation", "noise")
    ]
    assert keys[0] == keys[1]


def test_the_plan_says_who_does_what() -> None:
    config = base()
    planned = plan_runs(build_runs(build_experiment("noise", config, ["all-40"]), config, [0]))
    assert [one.own for one in planned] == [
        (RESPONSES, VERDICTS, REWARDS, POLICY, BEFORE, EVALUATION),
        (FEEDBACK, REWARDS, POLICY, EVALUATION),
    ]
    assert planned[1].shared == dict.fromkeys((RESPONSES, VERDICTS, BEFORE), "none/seed-0")


def test_the_plan_takes_what_another_experiment_has() -> None:
    config = base()
    (run,) = build_runs(build_experiment("cost", config, ["fine"]), config, [0])
    (only,) = plan_runs([run], dict.fromkeys(planned_keys(run.config).values(), "elsewhere"))
    assert only.own == ()


def test_the_work_is_estimated_from_a_timed_run() -> None:
    config = base()
    planned = plan_runs(build_runs(build_experiment("noise", config, ["all-40"]), config, [0]))
    timing = {"sample": 600.0, "label": 600.0, "train_rewards": 900.0, "align": 1200.0, "evaluate": 600.0}
    # 600 + 600 + 2 x 900 + 2 x 1200 + 300 + 2 x 300 = 6300 s
    assert plan_lines(planned, timing, [])[-1].startswith("About 1.8 h")


def test_the_plan_leaves_out_finished_runs() -> None:
    config = base()
    planned = plan_runs(build_runs(build_experiment("cost", config, ["fine"]), config, [0]))
    assert plan_lines(planned, None, ["fine/seed-0"]) == ["fine/seed-0  done", "", "Work: none"]


def test_a_chosen_variant_brings_what_it_is_compared_with() -> None:
    experiment = build_experiment("ood", base(), ["augmented-fog"])
    assert [variant.name for variant in experiment.variants] == ["plain-heldout", "plain-fog", "augmented-fog"]


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(UserError, match="has no variant nothing"):
        build_experiment("ablation", base(), ["nothing"])


def test_scenes_out_of_distribution_need_a_known_truth() -> None:
    with pytest.raises(UserError, match="needs images whose truth is known"):
        build_experiment("ood", base("data.source=folder", "data.path=images"))


def test_human_labels_are_left_out_where_nobody_gave_any() -> None:
    experiment = build_experiment("ablation", base("data.source=folder", "data.path=images"))
    assert "human" not in [variant.name for variant in experiment.variants]
    assert any("Human labels are left out" in note for note in experiment.notes)


def test_human_labels_of_people_are_used_by_their_variant_alone() -> None:
    config = base("data.source=folder", "data.path=images", "label.human={path: answers.json}")
    runs = build_runs(build_experiment("ablation", config), config, [0])
    assert [run.variant.name for run in runs if run.config.label.human is not None] == ["human"]


# Quantiles from printed tables of Student's distribution.
@pytest.mark.parametrize(
    ("probability", "degrees", "quantile"),
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.95, 2, 2.920),
        (0.975, 9, 2.262),
        (0.975, 30, 2.042),
        (0.025, 2, -4.303),
    ],
)
def test_quantiles_of_student_are_those_of_the_tables(probability: float, degrees: int, quantile: float) -> None:
    assert student_t_quantile(probability, degrees) == pytest.approx(quantile, abs=5e-4)


@given(st.floats(-50, 50), st.integers(1, 60))
def test_the_distribution_is_symmetric(t: float, degrees: int) -> None:
    assert student_t_cdf(t, degrees) + student_t_cdf(-t, degrees) == pytest.approx(1.0)


def test_the_interval_of_three_values() -> None:
    mean = mean_interval([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)  # standard deviation 1
    assert mean.interval == pytest.approx((2 - half, 2 + half), abs=1e-5)
    assert (mean.value, mean.standard_deviation, mean.count) == (2.0, 1.0, 3)


def test_a_single_value_has_no_interval() -> None:
    assert mean_interval([0.3]).interval is None


def test_differences_are_paired_by_seed() -> None:
    # What a seed does to both cancels: the differences are 1, 1 and 4, their deviation is sqrt(3).
    found = paired_difference({0: 11.0, 1: 21.0, 2: 34.0, 3: 99.0}, {0: 10.0, 1: 20.0, 2: 30.0})
    assert found is not None
    assert (found.value, found.count) == (2.0, 3)
    assert found.interval == pytest.approx((2 - 4.302653, 2 + 4.302653), abs=1e-5)


def test_without_a_common_seed_there_is_no_difference() -> None:
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def outcome(variant: str, seed: int, value: float, status: str = DONE) -> RunOutcome:
    figures = {"coverage": RunMetric(value, (value - 0.1, value + 0.1))} if status == DONE else {}
    return RunOutcome(variant, seed, f"{RUN}/{variant}", status, figures, None if status == DONE else "out of memory")


def coverage(outcomes: list[RunOutcome], variant: str) -> dict[str, object]:
    results = build_results(build_experiment("cost", base()), outcomes)
    found: dict[str, object] = next(one for one in results["variants"] if one["name"] == variant)["figures"]["coverage"]
    return found


def test_one_seed_keeps_the_interval_over_images() -> None:
    entry = coverage([outcome("fine", 0, 0.5), outcome("coarse", 0, 0.7)], "coarse")
    assert (entry["over"], entry["interval"]) == (OVER_IMAGES, pytest.approx([0.6, 0.8]))
    assert entry["difference"] == {
        "mean": pytest.approx(0.2), "interval": None, "over": None, "standard_deviation": None, "seeds": 1,
    }  # fmt: skip


def test_several_seeds_have_an_interval_over_seeds() -> None:
    entry = coverage([outcome("fine", seed, 0.5 + seed / 10) for seed in range(3)], "fine")
    assert (entry["over"], entry["mean"]) == (OVER_SEEDS, pytest.approx(0.6))
    assert entry["by_seed"] == {"0": 0.5, "1": 0.6, "2": 0.7}


def test_a_failed_run_counts_for_nothing() -> None:
    entry = coverage([outcome("fine", 0, 0.5), outcome("fine", 1, 0.9, FAILED)], "fine")
    assert (entry["mean"], entry["seeds"]) == (0.5, 1)


def test_figures_are_read_from_what_the_stages_wrote(tmp_path: Path) -> None:
    rates = {"overall": 0.4, "existence": 0.2, "attribute": 0.3, "relation": None}
    files = {
        "evaluation/metrics.json": {
            "before": {"hallucination_rate": rates, "coverage": 0.6, "repetition": 0.05},
            "after": {
                "hallucination_rate": rates | {"overall": 0.2},
                "coverage": 0.7,
                "repetition": 0.5,
                "intervals": {"coverage": [0.6, 0.8], "hallucination_rate": {"overall": None}},
            },
        },
        "feedback/metrics.json": {
            "extraction": {"calls": 60, "prompt_tokens": 700, "completion_tokens": 300},
            "facts": {"existence": 100, "attribute": 30, "relation": 10},
            "prefix_cache": {"prompt_tokens": 500},
        },
        "feedback/ledger.json": {"money": 0.5},
        "reward-accuracy.json": {
            which: {kind: {"balanced_accuracy": value, "confusion": confusion} for kind in FACT_TYPES}
            for which, value, confusion in (("before", 0.9, WITH_FACTS), ("after", 0.6, WITHOUT_FACTS))
        },
        "timing.json": {"label": 30.0, "train_rewards": 20.0, "align": 50.0, "evaluate": 7.0},
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    figures = read_figures(str(tmp_path))
    assert (figures["coverage"], figures["coverage.before"]) == (RunMetric(0.7, (0.6, 0.8)), RunMetric(0.6))
    assert (figures["repetition"], figures["repetition.before"]) == (RunMetric(0.5), RunMetric(0.05))
    assert "hallucination.relation" not in figures
    assert (figures["rewards.mean"].value, figures["rewards_after.mean"].value) == pytest.approx((0.9, 0.6))
    # Among facts: 30 of 40 true ones and 5 of 10 false ones, whatever was said where there is none.
    present = [name for name in figures if name.startswith("rewards") and "_present" in name]
    assert {name: figures[name].value for name in present} == {
        f"rewards_present.{kind}": pytest.approx(0.625) for kind in (*FACT_TYPES, "mean")
    }
    per_point = {name: figures[f"per_point.{name}"].value for name in ("calls", "tokens", "seconds", "money")}
    # 20 points: 200 calls, 1500 tokens, 100 s and half a unit of money.
    assert per_point == pytest.approx({"calls": 10, "tokens": 75, "seconds": 5, "money": 0.025})


class Credulous:
    """Reward models that take every segment for consistent, whatever it says."""

    def score_types(self, kinds: Sequence[str], items: Sequence[ScoringItem]) -> dict[str, list[np.ndarray]]:
        return {kind: [np.array([[0.0, 1.0, 0.0]] * len(item.segments)) for item in items] for kind in kinds}


def test_reward_models_are_held_against_the_truth_before_and_after(tmp_path: Path) -> None:
    image = str(tmp_path / "one.png")
    Image.new("RGB", (60, 60)).save(image)
    scene = Scene((SceneObject("circle", "red", "large", 0, 0),), fog=0.0, seed=1)
    prompt = "Describe this image."
    before = answer_row("before", "sampled", image, prompt, "There is a red circle.")
    after = answer_row("after", "sampled", image, prompt, "There is a red circle. There is a blue star.")
    others = [
        answer_row("before", "greedy", image, prompt, "There is a star."),
        answer_row("before", "sampled", "unknown.png", prompt, "There is a red circle."),
    ]
    found = reward_accuracy([before, after, *others], {image: scene}, Credulous(), False, FACT_TYPES)  # type: ignore[arg-type]
    shares = {which: found[which]["attribute"]["accuracy"] for which in found}
    assert shares == {"before": 1.0, "after": 0.5}


def test_the_truth_answers_like_a_person(tmp_path: Path) -> None:
    scene = Scene((SceneObject("circle", "red", "large", 0, 0),), fog=0.0, seed=1)
    text = "There is a blue circle. There is a large star."
    responses = [response("a", text, image) for image in ("one.png", "unknown.png")]
    path = tmp_path / "answers.json"
    path.write_bytes(truth_answers(responses, {"one.png": scene}, "audit"))
    labels = [labels for _, labels in majority_labels(read_answers([str(path)], FACT_TYPES)).values()]
    assert labels == [
        {"existence": 1, "attribute": 2, "relation": 0},
        {"existence": 2, "attribute": 2, "relation": 0},
    ]
