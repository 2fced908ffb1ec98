"""Two images a prompt through the sampler and its real engine, and the learner that is to agree with it."""

import pytest
from support.engine_process import EngineProcess
from support.several_images import PROMPTS, Agreement, sample_and_compare


@pytest.fixture(scope="module")
def agreement(vllm_process: EngineProcess, tmp_path_factory: pytest.TempPathFactory) -> Agreement:
    return vllm_process.call(sample_and_compare, "qwen2_5_vl", tmp_path_factory.mktemp("two"))


@pytest.mark.vllm
class TestSeveralImages:
    def test_every_prompt_has_a_response_about_both_images(self, agreement: Agreement) -> None:
        assert [response.prompt for response in agreement.responses] == list(PROMPTS)
        assert {len(response.images) for response in agreement.responses} == {2}

    def test_engine_and_learner_read_the_same_ids(self, agreement: Agreement) -> None:
        assert all(agreement.same_ids)

    def test_log_probabilities_agree(self, agreement: Agreement) -> None:
        assert agreement.difference < 1e-3

    def test_the_order_of_the_images_matters(self, agreement: Agreement) -> None:
        assert agreement.effect > 100 * agreement.difference
