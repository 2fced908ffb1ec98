"""One PPO step: what it learns, that it adds up however it is cut, and that it goes on where it was saved."""

import json
import math
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing
from safetensors.torch import load_file, save_file
from support.ppo_steps import (
    IMAGE,
    PPO,
    PROMPT,
    REWARDED,
    difference,
    experience,
    group,
    learner_state,
    new_model,
    toy_responses,
    trajectory,
    update,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.rl.checkpoint import LearnerState
from fgaif_ray.rl.plan import PromptPlan
from fgaif_ray.rl.policy import PolicyModel
from fgaif_ray.rl.run_log import RunLog, read_lines
from fgaif_ray.rl.step import PPOUpdater
from fgaif_ray.rl.trajectories import Trajectory, reward_trajectory
from fgaif_ray.rl.watch import trajectory_metrics
from fgaif_ray.vlm.group import LearnerGroup, WeightedMean


def rewarded_log_prob(model: PolicyModel, responses: list[list[int]]) -> float:
    rows = model.encode([PROMPT] * len(responses), [IMAGE] * len(responses), responses)
    with torch.no_grad():
        log_probs = model.log_probs(rows).log_probs
    return float(log_probs[rows_ids(responses) == REWARDED].mean())


def rows_ids(responses: list[list[int]]) -> Tensor:
    width = max(map(len, responses))
    return torch.tensor([ids + [0] * (width - len(ids)) for ids in responses])


def test_a_rewarded_token_becomes_more_probable() -> None:
    model, responses = new_model(), toy_responses()
    before = rewarded_log_prob(model, responses)
    for _ in range(3):
        update(model, experience(model, responses))
    assert rewarded_log_prob(model, responses) > before + 0.1


def test_the_critic_comes_to_expect_the_rewards() -> None:
    """With the policy standing still, since a policy that moves earns other rewards."""
    model, responses = new_model(), toy_responses()
    still = {"learning_rate": 1e-12, "critic_learning_rate": 2e-3, "value_coefficient": 1.0, "value_clip": 9.0}
    config = PPO.model_copy(update={"epochs": 30, "micro_batch_size": 8, "max_grad_norm": 9.0, **still})
    first = experience(model, responses)
    update(model, first, config, minibatches=1)
    later = experience(model, responses).metrics["critic/explained_variance_before"]
    assert first.metrics["critic/explained_variance_before"] == pytest.approx(0.0, abs=1e-6)
    assert later > 0.4


def test_micro_batches_add_up_to_the_minibatch() -> None:
    responses = toy_responses()
    # Gradients are compared, not the weights: Adam's first step is the rate times the gradient's sign.
    config = PPO.model_copy(update={"epochs": 1, "max_grad_norm": 1e9})

    def norms(micro_batch_size: int) -> dict[str, float]:
        model = new_model()
        own = config.model_copy(update={"micro_batch_size": micro_batch_size})
        return update(model, experience(model, responses), own, minibatches=1)

    one, three, all_rows = norms(1), norms(3), norms(8)
    # A policy loss of whitened advantages is a sum of terms of order one that cancel: exact to their rounding only.
    for name in ("update/policy_gradient_norm", "update/critic_gradient_norm", "policy/loss", "critic/loss"):
        assert one[name] == pytest.approx(all_rows[name], rel=1e-4, abs=1e-6)
        assert three[name] == pytest.approx(all_rows[name], rel=1e-4, abs=1e-6)


def test_a_response_without_reward_teaches_nothing() -> None:
    responses = toy_responses()

    def learn(rows: list[list[int]], lost: frozenset[int]) -> dict[str, float]:
        model = new_model()
        config = PPO.model_copy(update={"epochs": 1})
        return update(model, experience(model, rows, lost=lost), config, minibatches=1)

    with_lost = learn(responses, frozenset({0, 7}))
    without = learn(responses[1:7], frozenset())
    assert with_lost["update/policy_gradient_norm"] == pytest.approx(without["update/policy_gradient_norm"], rel=1e-4)


def test_a_step_without_any_reward_changes_nothing() -> None:
    model, responses = new_model(), toy_responses(4)
    before = model.trained_state()
    metrics = update(model, experience(model, responses, lost=frozenset(range(4))))
    assert difference(before, model.trained_state()) == 0
    assert metrics["update/skipped"] == 0
    assert math.isnan(metrics["policy/loss"])


def test_a_gradient_that_is_not_finite_is_skipped_and_counted() -> None:
    model, responses = new_model(), toy_responses()
    data = experience(model, responses)
    advantages = data.advantages.clone()
    advantages[0, 0] = float("inf")
    before = model.trained_state()
    metrics = update(model, replace(data, advantages=advantages), PPO.model_copy(update={"epochs": 1}), minibatches=1)
    assert metrics["update/skipped"] == 1
    assert difference(before, model.trained_state()) == 0


def test_the_learning_rate_warms_up() -> None:
    model, responses = new_model(), toy_responses(4)
    updater = PPOUpdater(model, PPO.model_copy(update={"warmup_steps": 4}), group())
    data = experience(model, responses)
    scales = [
        updater.update(data, step, torch.Generator().manual_seed(0), 1)["update/learning_rate_scale"]
        for step in (0, 1, 7)
    ]
    assert scales == [0.25, 0.5, 1.0]


def test_kl_to_the_reference_costs_reward() -> None:
    model, responses = new_model(), toy_responses()
    for _ in range(5):
        update(model, experience(model, responses))
    data = experience(model, responses)
    untouched = sum(1.0 if token == REWARDED else -0.2 for ids in responses for token in ids) / len(responses)
    assert abs(data.metrics["kl/per_response"]) > 1e-3
    assert data.metrics["reward/penalised"] == pytest.approx(
        untouched - 0.1 * data.metrics["kl/per_response"], abs=1e-4
    )


def test_a_saved_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    responses = toy_responses()

    def step(state: LearnerState, number: int) -> None:
        data = experience(state.model, responses)
        state.updater.update(data, number, torch.Generator().manual_seed(number), 2)
        state.kl_controller.update(8.0, 10)

    model = new_model()
    straight = learner_state(model, PPOUpdater(model, PPO, group()))
    step(straight, 0)
    straight.save(tmp_path, 1)
    step(straight, 1)

    model = new_model()
    resumed = learner_state(model, PPOUpdater(model, PPO, group()))
    assert resumed.load(tmp_path) == 1
    step(resumed, 1)
    assert difference(straight.model.trained_state(), resumed.model.trained_state()) == 0
    assert resumed.kl_controller.beta == straight.kl_controller.beta


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    model = new_model()
    updater = PPOUpdater(model, PPO, group())
    updater.update(experience(model, toy_responses(4)), 0, torch.Generator().manual_seed(0), 1)
    learner_state(model, updater).save(tmp_path, 1)
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}


def moved_model() -> PolicyModel:
    """A policy that has left the reference."""
    model, generator = new_model(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.policy_parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def told() -> list[Trajectory]:
    """The toy responses with a segment for each token, right or wrong as its id is even or odd."""
    rows = []
    for index, ids in enumerate(toy_responses()):
        verdicts = [[[0.0, 1.0 - token % 2, float(token % 2)]] * 2 + [[1.0, 0.0, 0.0]] for token in ids]
        places = tuple(range(len(ids)))
        changes = {"token_rewards": None, "segment_spans": ((0, 1),) * len(ids), "token_ends": places}
        finish = "stop" if index % 3 else "length"
        row = trajectory(index, ids, [-1.0] * len(ids), **changes, response="x", finish_reason=finish)
        rows.append(reward_trajectory(row, verdicts, RewardOptions(weights=dict.fromkeys(FACT_TYPES, 1.0))))
    return rows


def two_learners(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    learners = LearnerGroup(torch.device("cpu"))
    model = moved_model()
    config = PPO.model_copy(update={"epochs": 1})
    own = slice(2) if rank else slice(2, None)  # two short responses and six
    data = experience(model, toy_responses()[own], config, learners=learners)
    updates = PPOUpdater(model, config, learners).update(data, 0, torch.Generator().manual_seed(0), 1)
    metrics = learners.merge(trajectory_metrics(told()[own], FACT_TYPES) | data.metrics | updates)
    rules = {"own_max": float(rank), "count/rows": 4.0, "mean": float(rank), "lost": math.nan}
    rules |= {"weighted": WeightedMean(rank, 1 + 2 * rank), "empty": WeightedMean(0.5 if rank else 99.0, rank)}
    Path(folder, f"{rank}.json").write_text(json.dumps({"rules": learners.merge(rules), "metrics": metrics}))
    save_file(model.trained_state(), Path(folder, f"{rank}.safetensors"))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_learners_are_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(two_learners, (port, str(tmp_path)), nprocs=2)
    model = moved_model()
    config = PPO.model_copy(update={"epochs": 1})
    data = experience(model, toy_responses())
    alone = trajectory_metrics(told(), FACT_TYPES) | data.metrics | update(model, data, config, minibatches=1)
    figures = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    states = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    assert difference(states[0], states[1]) == 0
    # Whatever the processes' shares of tokens, responses and segments, the metrics are those of all rows together.
    assert figures[0]["metrics"] == pytest.approx(alone, rel=1e-4, abs=1e-6, nan_ok=True)
    rules = figures[1]["rules"]
    assert rules["own_max"] == 1 and rules["count/rows"] == 8 and rules["mean"] == 0.5
    assert rules["weighted"] == 0.75 and rules["empty"] == 0.5 and math.isnan(rules["lost"])


def test_a_plan_goes_through_all_images_each_time_round() -> None:
    plan = PromptPlan([(str(index),) for index in range(10)], ["a", "b", "c"], seed=3)
    drawn = [draw for step in range(5) for draw in plan.draw(step, 4)]
    rounds = [[draw.images for draw in drawn[start : start + 10]] for start in (0, 10)]
    assert sorted(rounds[0]) == sorted(rounds[1]) == sorted((str(index),) for index in range(10))
    assert rounds[0] != rounds[1]
    assert len({draw.seed for draw in drawn}) == len({draw.sample_id for draw in drawn}) == 20


def test_an_image_gets_its_next_prompt_the_next_time_round() -> None:
    plan = PromptPlan([("x",), ("y",)], ["a", "b", "c"], seed=3)
    prompts = [draw.prompt for step in range(3) for draw in plan.draw(step, 2) if draw.images == ("x",)]
    assert prompts == ["a", "b", "c"]


def test_a_plan_draws_the_same_whatever_came_before() -> None:
    images = [(str(index),) for index in range(7)]
    straight = PromptPlan(images, ["a", "b"], seed=3)
    before = [straight.draw(step, 5) for step in range(6)]
    assert PromptPlan(images, ["a", "b"], seed=3).draw(5, 5) == before[5]
    assert PromptPlan(images, ["a", "b"], seed=4).draw(5, 5) != before[5]


def test_a_log_that_goes_on_drops_what_came_after(tmp_path: Path) -> None:
    log = RunLog(str(tmp_path), 1, FACT_TYPES)
    one = trajectory(0, [5, 6], [-1.0, -2.0])
    for step in (1, 2, 3):
        log.write_metrics(step, {"reward/total": float(step), "lost": math.nan})
        log.write_samples(step, [one])
    log.close()
    resumed = RunLog(str(tmp_path), 2, FACT_TYPES)
    resumed.write_metrics(2, {"reward/total": 20.0, "lost": 1.0})
    resumed.close()
    lines = read_lines(str(tmp_path / "metrics.jsonl"))
    assert [(line["step"], line["reward/total"], line["lost"]) for line in lines] == [(1, 1.0, None), (2, 20.0, 1.0)]
    assert [line["step"] for line in read_lines(str(tmp_path / "samples.jsonl"))] == [1]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_sample_line_names_all_images(tmp_path: Path) -> None:
    log = RunLog(str(tmp_path), 1, FACT_TYPES)
    log.write_samples(1, [trajectory(0, [5], [-1.0]), trajectory(1, [5], [-1.0], more_images=("b.png",))])
    log.close()
    single, double = read_lines(str(tmp_path / "samples.jsonl"))
    assert "more_images" not in single and double["more_images"] == ["b.png"]


def test_a_sample_line_shows_verdicts_and_rewards(tmp_path: Path) -> None:
    verdicts = ((0.1, 0.8, 0.1), (0.0, 0.1, 0.9), (1.0, 0.0, 0.0))
    one = trajectory(
        0, [5, 6, 7], [-1.0, -2.0, -1.0], response=" a red ball", segment_spans=((0, 11),), token_ends=(1,),
        class_probabilities=(verdicts,), per_type_rewards=((0.7, -0.8, 0.0),), token_rewards=(0.0, -0.1, -1.0),
    )  # fmt: skip
    log = RunLog(str(tmp_path), 1, FACT_TYPES)
    log.write_samples(1, [one])
    log.close()
    [line] = read_lines(str(tmp_path / "samples.jsonl"))
    [segment] = line["segments"]
    assert segment["text"] == " a red ball"
    assert segment["probabilities"]["attribute"] == [0.0, 0.1, 0.9]
    assert segment["rewards"] == {"existence": 0.7, "attribute": -0.8, "relation": 0.0}
    assert line["reward"] == pytest.approx(-1.1)
    accumulator = EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    [event] = accumulator.Tensors("samples/text_summary")
    assert "hallucinated 0.90, -0.80" in event.tensor_proto.string_val[0].decode()


def test_watched_figures_are_means_over_responses() -> None:
    truth, lie, absent = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)
    one = trajectory(
        0, [5, 6], [-1.0, -2.0], segment_spans=((0, 1), (1, 2)), token_ends=(0, 1), finish_reason="length",
        class_probabilities=((truth, absent, absent), (lie, truth, absent)),
        per_type_rewards=((1.0, 0.0, 0.0), (-1.0, 1.0, 0.0)), token_rewards=(1.0, 0.0),
    )  # fmt: skip
    two = trajectory(1, [5, 6, 7, 8], [-1.0] * 4, token_rewards=None, reward_failure="lost")
    metrics = trajectory_metrics([one, two], FACT_TYPES)
    assert metrics["reward/existence"] == 0 and metrics["reward/attribute"] == 1
    assert metrics["hallucination/existence"] == 0.5 and metrics["hallucination/attribute"] == 0
    assert math.isnan(metrics["hallucination/relation"])
    assert metrics["facts/per_response"] == 3
    assert metrics["response/length"] == 3
    assert metrics["response/stopped_share"] == 0.5
    assert metrics["reward/missing_share"] == 0.5


def test_repetition_is_seen_by_words_and_with_novelty_by_its_verdicts() -> None:
    truth, lie = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
    settings = {
        "response": "A dog. A dog.",
        "segment_spans": ((0, 6), (7, 13)),
        "token_ends": (0, 1),
        "per_type_rewards": ((1.0, 0.0), (1.0, 0.0)),
        "token_rewards": (1.0, 1.0),
    }
    by_words = trajectory(0, [5, 6], [-1.0, -1.0], class_probabilities=((truth,), (truth,)), **settings)
    assert trajectory_metrics([by_words], ["existence"])["response/repeated_share"] == 0.5
    judged = trajectory(0, [5, 6], [-1.0, -1.0], class_probabilities=((truth, lie), (truth, lie)), **settings)
    metrics = trajectory_metrics([judged], ["existence", "novelty"])
    assert metrics["response/repeated_share"] == 1.0
    assert metrics["facts/per_response"] == 2  # novelty is no fact


def test_explained_variance_is_about_what_was_really_paid() -> None:
    """A critic that says the same of every token explains nothing, though lambda-returns are made of what it says."""
    model = new_model()
    with torch.no_grad():
        model.value_head.bias.fill_(3.0)
    assert experience(model, toy_responses()).metrics["critic/explained_variance_before"] <= 0.01
