"""The adapters inside the trainers' own code, each test where its trainer is installed.

TRL is in requirements/cpu.lock. Beside it: `pip install --no-deps openrlhf==0.11.2 pylatexenc`,
`pip install --no-deps verl==0.9.1 tensordict pyvers omegaconf antlr4-python3-runtime==4.9.3 hydra-core codetiming`.
EasyR1 also calls itself verl: put its sources on PYTHONPATH in the other one's place. SkyRL wants Python 3.12.
"""

import asyncio
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.adapter_calls import ROOT, easyr1_call, load_by_path, openrlhf_call, skyrl_call, verl_call
from support.local_gateway import WEIGHTS, LocalScorer, local_gateway, served
from support.reward_helpers import CHECKPOINT, PROMPT, RESPONSE, picture
from transformers import AutoTokenizer

from fgaif_ray.adapters import common
from fgaif_ray.adapters.common import total_reward
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.serving.client import RewardClient, reward_item
from fgaif_ray.serving.wire import ScoredResponse

pytestmark = pytest.mark.filterwarnings("ignore")  # of trainers and what they bring along

TOKENIZER = AutoTokenizer.from_pretrained(CHECKPOINT)
TEXTS = [RESPONSE, "A red circle."]


def peer(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, exc_type=ImportError)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> LocalScorer:
    return LocalScorer(tmp_path_factory.mktemp("rewards"))


@pytest.fixture
def url(scorer: LocalScorer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with served(local_gateway(scorer, RewardOptions(weights=WEIGHTS), token=None)) as url:
        monkeypatch.setenv("FGAIF_REWARD_URL", url)
        monkeypatch.setenv("POLICY", CHECKPOINT)
        yield url
        common.close_shared_clients()


def expected(url: str) -> list[ScoredResponse]:
    with RewardClient(url) as client:
        return client.score([reward_item(picture(index), PROMPT, text) for index, text in enumerate(TEXTS)])


@pytest.mark.slow
def test_trl_takes_a_step_of_grpo(url: str, scorer: LocalScorer, tmp_path: Path) -> None:
    peer("trl")
    peer("datasets")

    trainer = load_by_path("trl_grpo.py").make_trainer(url, CHECKPOINT, 1, str(tmp_path))
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    scorer.batches.clear()
    trainer.train()
    [logged] = [entry for entry in trainer.state.log_history if "reward" in entry]
    means = [logged[f"rewards/{name}_reward/mean"] for name in ("existence", "attribute", "relation")]
    assert trainer.state.global_step == 1
    assert all(-1 <= mean <= 1 for mean in means) and any(means)
    assert logged["reward"] == pytest.approx(sum(means), abs=1e-4)
    assert logged["fgaif/refused"] == 0
    assert sum(map(len, scorer.batches)) == 8  # one request for three functions
    assert any(not torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())


class Engine:
    """Gives the response that it was given."""

    def __init__(self, text: str) -> None:
        self.token_ids = [*TOKENIZER.encode(text, add_special_tokens=False), TOKENIZER.eos_token_id]

    async def generate(self, prompt_token_ids: list[int], sampling_params: Any, multi_modal_data: Any = None) -> Any:
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=self.token_ids, finish_reason="stop", logprobs=None)])


@pytest.mark.parametrize("form", ["function", "HTTP", "two servers"])
def test_openrlhf_rewards_its_samples(url: str, form: str) -> None:
    agent = peer("openrlhf.utils.agent")
    call = openrlhf_call(TEXTS)
    remote = f"{url}/get_reward"
    endpoints = {"function": [str(ROOT / "examples/openrlhf_reward.py")], "HTTP": [remote], "two servers": [remote] * 2}
    executor = agent.SingleTurnAgentExecutor(endpoints[form])
    sampling = SimpleNamespace(max_tokens=64, logprobs=None)
    for text, prompt, label, scored in zip(TEXTS, call["prompts"], call["labels"], expected(url), strict=True):
        sample = asyncio.run(executor.execute(prompt, label, sampling, 512, TOKENIZER, Engine(text)))
        assert torch.tensor([sample["reward"]]).item() == pytest.approx(scored.reward, abs=1e-4)
        assert 0 <= torch.tensor([sample["scores"]]).item() <= 1
        assert {"segments", "reward_existence", "reward_attribute", "reward_relation"} <= set(sample["extra_logs"])


def test_openrlhf_has_no_reward_where_none_could_be_had(url: str) -> None:
    agent = peer("openrlhf.utils.agent")
    executor = agent.SingleTurnAgentExecutor([str(ROOT / "examples/openrlhf_reward.py")])
    [prompt], sampling = openrlhf_call(TEXTS[:1])["prompts"], SimpleNamespace(max_tokens=64, logprobs=None)
    sample = asyncio.run(executor.execute(prompt, "no reference", sampling, 512, TOKENIZER, Engine(RESPONSE)))
    assert sample["reward"] is None and sample["scores"] is None


def padded(texts: list[str]) -> dict[str, torch.Tensor]:
    """Responses as verl and EasyR1 hold them, with a prompt of two tokens."""
    ids = [torch.tensor([*TOKENIZER.encode(text, add_special_tokens=False), TOKENIZER.eos_token_id]) for text in texts]
    responses = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)  # [batch, response_tokens]
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in ids], batch_first=True)
    prompts = torch.ones(len(texts), 2, dtype=torch.int64)
    return {
        "prompts": prompts,
        "responses": responses,
        "response_mask": mask,
        "attention_mask": torch.cat([torch.ones_like(prompts), mask], dim=1),
    }


def objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def test_verl_rewards_its_samples(url: str) -> None:
    manager_module = peer("verl.experimental.reward_loop.reward_manager.naive")
    from omegaconf import OmegaConf
    from verl import DataProto
    from verl.trainer.ppo.reward import get_custom_reward_fn

    function = {"path": str(ROOT / "examples/verl_reward.py"), "name": "compute_score", "reward_kwargs": {"url": url}}
    config = OmegaConf.create({"reward": {"custom_reward_function": function}, "custom_reward_function": function})
    data = DataProto.from_dict(
        tensors=padded(TEXTS),
        non_tensors={
            "data_source": objects(["scenes"] * 2),
            "reward_model": objects([{"ground_truth": ""}] * 2),
            "extra_info": objects([verl_call(text, index)["extra_info"] for index, text in enumerate(TEXTS)]),
        },
    )

    async def score() -> list[dict[str, Any]]:
        from fgaif_ray.adapters import verl

        manager = manager_module.NaiveRewardManager(config, TOKENIZER, get_custom_reward_fn(config))
        manager.loop = asyncio.get_running_loop()
        try:
            return await asyncio.gather(*(manager.run_single(data[index : index + 1]) for index in range(2)))
        finally:
            await verl.close()

    outputs = asyncio.run(score())
    scored = expected(url)
    assert [one["reward_score"] for one in outputs] == pytest.approx([total_reward(one) for one in scored], abs=1e-4)
    assert outputs[0]["reward_extra_info"]["segments"] == 2


def test_easyr1_rewards_its_samples(url: str) -> None:
    function = peer("verl.workers.reward.function")
    from verl.protocol import DataProto
    from verl.workers.reward.config import RewardConfig

    config = RewardConfig(reward_function=f"{ROOT}/examples/easyr1_reward.py:compute_score")
    config.post_init()
    manager = function.AutoRewardManager(config, TOKENIZER)
    references = objects([entry["ground_truth"] for entry in easyr1_call(TEXTS)])
    data = DataProto.from_dict(tensors=padded(TEXTS), non_tensors={"ground_truth": references})
    rewards, metrics = manager.compute_reward(data)
    assert rewards.sum(dim=1).tolist() == pytest.approx([total_reward(one) for one in expected(url)], abs=1e-4)
    assert metrics["segments"] == [2, 1]


def test_skyrl_accepts_the_rewards(url: str) -> None:
    utilities = peer("skyrl.train.utils.trainer_utils")
    batch, output = skyrl_call(TEXTS, TOKENIZER)

    class Recorded:
        async def generate(self, input_batch: dict[str, Any]) -> dict[str, Any]:
            return output

    async def rewarded_output() -> dict[str, Any]:
        generator = load_by_path("skyrl_rewards.py").with_dense_rewards(Recorded(), TOKENIZER, url)
        try:
            output: dict[str, Any] = await generator.generate(batch)
            return output
        finally:
            await generator._rewards.close()

    rewarded = asyncio.run(rewarded_output())
    utilities.validate_generator_output(len(TEXTS), rewarded)
    assert [sum(row) for row in rewarded["rewards"]] == pytest.approx([one.reward for one in expected(url)], abs=1e-4)
