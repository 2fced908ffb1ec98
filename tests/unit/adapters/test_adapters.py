"""The adapters, called as the trainers call them, against the real gateway and reward models over HTTP."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from support.adapter_calls import (
    data_url,
    easyr1_call,
    load_by_path,
    openrlhf_call,
    pil,
    reference,
    skyrl_call,
    trl_call,
    verl_call,
)
from support.local_gateway import TOKEN, WEIGHTS, LocalScorer, local_gateway, served
from support.reward_helpers import CHECKPOINT, PROMPT, RESPONSE, picture
from transformers import AutoTokenizer

from fgaif_ray.adapters import common, verl
from fgaif_ray.adapters.common import (
    total_reward,
    type_reward,
)
from fgaif_ray.adapters.easyr1 import compute_score as easyr1_score
from fgaif_ray.adapters.openrlhf import OpenRLHFRewards
from fgaif_ray.adapters.placement import place_rewards, service_options
from fgaif_ray.adapters.skyrl import DenseRewardGenerator, DenseRewards
from fgaif_ray.adapters.trl import TRLRewards
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.rewards.encoding import ScoringItem
from fgaif_ray.rewards.preparation import segment_response
from fgaif_ray.serving.client import AsyncRewardClient, RewardClient, RewardServiceError, reward_item
from fgaif_ray.serving.wire import ScoredResponse

TEXTS = [RESPONSE, "A red circle.", ""]
TOO_LONG = "A red circle. " * 1000
TOKENIZER = AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> LocalScorer:
    return LocalScorer(tmp_path_factory.mktemp("rewards"))


@pytest.fixture(scope="module")
def url(scorer: LocalScorer) -> Iterator[str]:
    with served(local_gateway(scorer, RewardOptions(weights=WEIGHTS))) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[RewardClient]:
    with RewardClient(url) as client:
        yield client


@pytest.fixture
def from_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FGAIF_REWARD_URL", url)
    yield
    common.close_shared_clients()


@pytest.fixture
def wrong_token(monkeypatch: pytest.MonkeyPatch, from_environment: None) -> None:
    monkeypatch.setenv("FGAIF_REWARD_TOKEN", "wrong")
    common.close_shared_clients()


def expected(client: RewardClient, texts: Sequence[str] = TEXTS) -> list[ScoredResponse]:
    return client.score([reward_item(picture(index), PROMPT, text) for index, text in enumerate(texts)])


# TRL


def test_trl_gets_the_unweighted_mean_of_each_type(client: RewardClient) -> None:
    per_function = trl_call(TRLRewards(client).functions, TEXTS)
    scored = expected(client)
    for fact_type, rewards in zip(FACT_TYPES, per_function, strict=True):
        triples = [[getattr(segment, fact_type) for segment in one.segments] for one in scored]
        means = [np.mean([p[1] - p[2] for p in rows]) if rows else 0.0 for rows in triples]
        assert rewards == pytest.approx(means, abs=1e-4)
    assert len({tuple(rewards) for rewards in per_function}) == 3


def test_the_three_functions_of_trl_share_one_request(client: RewardClient, scorer: LocalScorer) -> None:
    rewards = TRLRewards(client)
    scorer.batches.clear()
    trl_call(rewards.functions, TEXTS)
    assert sum(map(len, scorer.batches)) == len(TEXTS)
    trl_call(rewards.functions, TEXTS)  # the next batch is asked for, equal as it may be
    assert sum(map(len, scorer.batches)) == 2 * len(TEXTS)


def test_trl_masks_what_is_refused_and_nothing_else(client: RewardClient) -> None:
    logged: list[tuple[str, float]] = []
    log = {"log_metric": lambda name, value: logged.append((name, value))}
    per_function = trl_call(TRLRewards(client).functions, [RESPONSE, TOO_LONG], **log)
    assert [[reward is None for reward in rewards] for rewards in per_function] == [[False, True]] * 3
    assert logged == [("fgaif/refused", 0.5)]


def test_trl_is_stopped_where_all_is_refused(client: RewardClient) -> None:
    with pytest.raises(RewardServiceError, match="not_scorable"):
        trl_call(TRLRewards(client).functions, [TOO_LONG, TOO_LONG])


@pytest.mark.parametrize(
    "columns",
    [{"images": [[pil(index)] for index in range(3)]}, {"photo": [data_url(index) for index in range(3)]}, {}],
    ids=["images", "named", "in the prompts"],
)
def test_trl_images_may_be_anywhere(client: RewardClient, columns: dict[str, Any]) -> None:
    rewards = TRLRewards(client, image_column="photo" if "photo" in columns else None)
    elsewhere = trl_call(rewards.functions, TEXTS, without=["image"], **columns)
    assert elsewhere == trl_call(TRLRewards(client).functions, TEXTS)


def test_trl_is_told_of_a_column_that_is_missing(client: RewardClient) -> None:
    with pytest.raises(ValueError, match="'photo'"):
        trl_call(TRLRewards(client, image_column="photo").functions, TEXTS)


# OpenRLHF


@pytest.mark.parametrize("qwen", [False, True])
def test_openrlhf_gets_the_same_by_function_and_over_http(url: str, client: RewardClient, qwen: bool) -> None:
    call = openrlhf_call(TEXTS, qwen)
    special = [] if qwen else TOKENIZER.all_special_tokens
    by_function = OpenRLHFRewards(client, special)(**call)
    body = {"query": call["queries"], "prompts": call["prompts"], "labels": call["labels"]}
    answer = httpx2.post(f"{url}/get_reward", json=body, headers={"authorization": f"Bearer {TOKEN}"}, timeout=60)
    over_http = answer.json()
    assert by_function["rewards"].tolist() == pytest.approx([one.reward for one in expected(client)], abs=1e-4)
    assert by_function["rewards"].tolist() == pytest.approx(over_http["rewards"], abs=1e-4)
    assert by_function["scores"].tolist() == pytest.approx(over_http["scores"], abs=1e-4)
    for name, values in over_http["extra_logs"].items():
        assert by_function["extra_logs"][name].tolist() == pytest.approx(values, abs=1e-4)


def test_openrlhf_labels_may_hold_paths(client: RewardClient, tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(len(TEXTS))]
    for index, path in enumerate(paths):
        path.write_bytes(picture(index))
    rewards = OpenRLHFRewards(client, TOKENIZER.all_special_tokens)
    by_path = rewards(**openrlhf_call(TEXTS, images=list(map(str, paths))))
    assert by_path["rewards"].tolist() == pytest.approx(rewards(**openrlhf_call(TEXTS))["rewards"].tolist(), abs=1e-4)


# verl


def test_verl_gets_the_mean_weighted_reward(client: RewardClient, from_environment: None) -> None:
    async def score() -> list[dict[str, float]]:
        calls = [verl.compute_score(**verl_call(text, index)) for index, text in enumerate(TEXTS)]
        try:
            return await asyncio.gather(*calls)
        finally:
            await verl.close()

    scores = asyncio.run(score())
    scored = expected(client)
    assert [one["score"] for one in scores] == pytest.approx([total_reward(one) for one in scored], abs=1e-4)
    assert [one["relation"] for one in scores] == pytest.approx(
        [type_reward(one, "relation") for one in scored], abs=1e-4
    )
    assert [one["segments"] for one in scores] == [2, 1, 0]


def test_verl_batches_get_the_same(client: RewardClient, from_environment: None) -> None:
    calls = [verl_call(text, index) for index, text in enumerate(TEXTS)]
    columns = {f"{name}s": [call[name] for call in calls] for name in calls[0]}
    scores = verl.compute_score_batch(**columns, reduction="sum")
    assert [one["score"] for one in scores] == pytest.approx([one.reward for one in expected(client)], abs=1e-4)


def test_verl_ground_truths_may_tell_image_and_question(client: RewardClient, url: str) -> None:
    [score] = verl.compute_score_batch(["d"], [RESPONSE], [reference(0)], [{}], url=url)
    common.close_shared_clients()
    assert score["score"] == pytest.approx(total_reward(expected(client)[0]), abs=1e-4)


# EasyR1


def test_easyr1_gets_the_mean_weighted_reward(client: RewardClient, from_environment: None) -> None:
    scores = easyr1_score(easyr1_call(TEXTS))
    assert [one["overall"] for one in scores] == pytest.approx(
        [total_reward(one) for one in expected(client)], abs=1e-4
    )
    assert all(set(one) == {"overall", *FACT_TYPES, "segments"} for one in scores)


# SkyRL


class Recorded:
    """A generator that gives what it was given."""

    model_name = "policy"

    def __init__(self, output: dict[str, Any]) -> None:
        self.output = output

    async def generate(self, input_batch: dict[str, Any], disable_tqdm: bool = False) -> dict[str, Any]:
        return self.output


async def dense(url: str, batch: dict[str, Any], output: dict[str, Any], tokenizer: Any = TOKENIZER) -> dict[str, Any]:
    async with AsyncRewardClient(url) as client:
        return await DenseRewardGenerator(Recorded(output), DenseRewards(client, tokenizer)).generate(batch)


def test_skyrl_gets_the_token_rewards_of_the_service(client: RewardClient, url: str) -> None:
    batch, output = skyrl_call(TEXTS, TOKENIZER)
    rewards = asyncio.run(dense(url, batch, output))["rewards"]
    items = [
        reward_item(picture(index), PROMPT, response_token_ids=ids) for index, ids in enumerate(output["response_ids"])
    ]
    for given, scored in zip(rewards, client.score(items), strict=True):
        assert given == pytest.approx(scored.token_rewards, abs=1e-4)
    assert sum(reward != 0 for reward in rewards[0]) == 2


class Characters:
    """A tokenizer that the service knows nothing of: a token per character."""

    eos_token_id = 0

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False, **_: Any) -> str:
        return "".join(chr(one) for one in token_ids if one or not skip_special_tokens)


def test_skyrl_policies_may_have_another_tokenizer(client: RewardClient, url: str) -> None:
    batch, output = skyrl_call(TEXTS, Characters())
    rewards = asyncio.run(dense(url, batch, output, Characters()))["rewards"]
    for given, scored, ids in zip(rewards, expected(client), output["response_ids"], strict=True):
        wanted = [0.0] * len(ids)
        for segment in scored.segments:
            wanted[len(scored.response[: segment.end].rstrip()) - 1] = segment.reward
        assert given == pytest.approx(wanted, abs=1e-4)


def test_skyrl_images_may_be_a_column(url: str) -> None:
    batch, output = skyrl_call(TEXTS, TOKENIZER)
    in_prompts = asyncio.run(dense(url, batch, dict(output)))["rewards"]
    batch["env_extras"] = [{"image": pil(index)} for index in range(len(TEXTS))]
    batch["prompts"] = [[{"role": "user", "content": PROMPT}] for _ in TEXTS]
    in_column = asyncio.run(dense(url, batch, dict(output)))["rewards"]
    for one, other in zip(in_prompts, in_column, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_skyrl_tokens_of_an_environment_are_refused(url: str) -> None:
    batch, output = skyrl_call(TEXTS, TOKENIZER)
    output["loss_masks"][0][3] = 0
    with pytest.raises(ValueError, match="did not sample"):
        asyncio.run(dense(url, batch, output))


def test_skyrl_steps_are_refused(url: str) -> None:
    batch, output = skyrl_call(TEXTS, TOKENIZER)
    with pytest.raises(ValueError, match="3 responses to 2 prompts"):
        asyncio.run(dense(url, batch | {"prompts": batch["prompts"][:2]}, output))


def test_a_wrapped_generator_is_otherwise_the_one_it_wraps(url: str) -> None:
    wrapped = DenseRewardGenerator(Recorded({}), DenseRewards(AsyncRewardClient(url), TOKENIZER))
    assert wrapped.model_name == "policy" and not hasattr(wrapped, "cost")


# Placement


@pytest.mark.parametrize(
    "options",
    [
        RewardOptions(weights=WEIGHTS, value="argmax"),
        RewardOptions(weights=WEIGHTS, granularity="response"),
        RewardOptions(weights=WEIGHTS, normalise_by_segments=True, false_cost=2.0),
    ],
    ids=["argmax", "response", "normalised"],
)
def test_rewards_are_placed_as_the_service_is_configured(scorer: LocalScorer, options: RewardOptions) -> None:
    ids = TOKENIZER.encode(RESPONSE, add_special_tokens=False)
    with served(local_gateway(scorer, options)) as url, RewardClient(url) as client:
        [by_ids, by_text] = client.score(
            [reward_item(picture(), PROMPT, response_token_ids=ids), reward_item(picture(), PROMPT, RESPONSE)]
        )
        told = service_options(client.models())
    assert told == options
    assert place_rewards(by_text, ids, TOKENIZER, told) == pytest.approx(by_ids.token_rewards, abs=1e-4)


def test_rewards_of_another_text_are_not_placed(client: RewardClient) -> None:
    with pytest.raises(ValueError, match="not what"):
        place_rewards(expected(client)[0], [5, 6, 7], TOKENIZER, RewardOptions(weights=WEIGHTS))


# Never a silent zero


def test_no_adapter_makes_up_a_reward(url: str, wrong_token: None) -> None:
    batch, output = skyrl_call(TEXTS, TOKENIZER)

    async def score_one() -> dict[str, float]:
        try:
            return await verl.compute_score(**verl_call(RESPONSE, 0))
        finally:
            await verl.close()

    with RewardClient(url) as client:
        calls = [
            lambda: trl_call(TRLRewards(client).functions, TEXTS),
            lambda: OpenRLHFRewards(client, [])(**openrlhf_call(TEXTS, qwen=True)),
            lambda: easyr1_score(easyr1_call(TEXTS)),
            lambda: asyncio.run(score_one()),
            lambda: verl.compute_score_batch(["d"], [RESPONSE], [reference(0)], [{}]),
            lambda: asyncio.run(dense(url, batch, output)),
        ]
        for call in calls:
            with pytest.raises(RewardServiceError, match="unauthorized"):
                call()


def test_a_prompt_with_other_places_than_images_is_refused_with_422(url: str) -> None:
    item = {"image": data_url(0), "prompt": "Describe <image> and <image>.", "response": RESPONSE}
    good = item | {"prompt": PROMPT}
    headers = {"authorization": f"Bearer {TOKEN}"}
    answer = httpx2.post(f"{url}/v1/rewards", json={"items": [good, item]}, headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "not_scorable")


# What the adapters share


def test_the_fact_types_are_the_ones_that_the_service_names(client: RewardClient) -> None:
    assert client.fact_types() == FACT_TYPES


def test_responses_about_several_images_are_rewarded_over_http(client: RewardClient, scorer: LocalScorer) -> None:
    chat = [{"role": "user", "content": "Is <image> like <image>?"}]
    shown = [[pil(3), pil(90)], [pil(90), pil(3)]]
    prompts, completions = [chat] * 2, [RESPONSE] * 2
    segments = segment_response(TOKENIZER, RESPONSE, None).segments
    items = [ScoringItem(images, chat[0]["content"], segments) for images in shown]
    expected = scorer.model.score_types(FACT_TYPES, items)
    for fact_type, reward in zip(FACT_TYPES, TRLRewards(client).functions, strict=True):
        found = reward(prompts=prompts, completions=completions, images=shown)
        assert found == pytest.approx([(one[:, 1] - one[:, 2]).mean() for one in expected[fact_type]], abs=1e-4)
    assert any(abs(first - swapped).max() > 1e-3 for first, swapped in expected.values())


def test_without_a_url_it_is_told_which_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FGAIF_REWARD_URL", raising=False)
    with pytest.raises(ValueError, match="FGAIF_REWARD_URL"):
        easyr1_score(easyr1_call(TEXTS))


@pytest.mark.parametrize("name", ["trl", "openrlhf", "verl", "easyr1"])
def test_adapters_need_nothing_heavy(repository: Path, name: str) -> None:
    heavy = {"torch", "transformers", "numpy", "pyarrow", "ray", "vllm", "fastapi", "sentencex"}
    code = f"import sys, fgaif_ray.adapters.{name}; print(sorted({heavy!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=repository, check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"


# Examples


def test_the_openrlhf_example_rewards(
    client: RewardClient, from_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLICY", CHECKPOINT)
    rewards = load_by_path("openrlhf_reward.py").reward_func(**openrlhf_call(TEXTS[:1]))["rewards"]
    assert rewards.tolist() == pytest.approx([expected(client)[0].reward], abs=1e-4)


def test_the_verl_example_rewards(from_environment: None) -> None:
    module = load_by_path("verl_reward.py")
    calls = [verl_call(RESPONSE, 0)]
    columns = {f"{name}s": [call[name] for call in calls] for name in calls[0]}
    assert asyncio.iscoroutinefunction(module.compute_score)
    assert module.compute_score_batch(**columns)[0]["score"] != 0


def test_the_easyr1_example_rewards(from_environment: None) -> None:
    module = load_by_path("easyr1_reward.py")
    assert module.REWARD_TYPE == "batch"
    assert json.dumps(module.compute_score(easyr1_call(TEXTS[:1])))


def test_the_skyrl_example_rewards(url: str) -> None:
    batch, output = skyrl_call(TEXTS, TOKENIZER)
    module = load_by_path("skyrl_rewards.py")

    async def rewarded() -> list[list[float]]:
        generator = module.with_dense_rewards(Recorded(output), TOKENIZER, url)
        rewards: list[list[float]] = (await generator.generate(batch))["rewards"]
        await generator._rewards.close()
        return rewards

    rewards = asyncio.run(rewarded())
    assert [len(row) for row in rewards] == [len(ids) for ids in output["response_ids"]]


def test_the_trl_example_has_rows_for_it(client: RewardClient) -> None:
    rows = load_by_path("trl_grpo.py").scenes(2)
    completions = [[{"role": "assistant", "content": "A red circle."}]] * 2
    columns = {"prompts": [row["prompt"] for row in rows], "image": [row["image"] for row in rows]}
    assert len(TRLRewards(client).function("existence")(completions=completions, **columns)) == 2
