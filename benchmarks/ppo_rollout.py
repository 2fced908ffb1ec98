"""Sampled tokens per second of a rollout worker, over bare `vllm.LLM.generate`.

Both sides have an engine with the options of `align.rollout.engine` and one thread, that serves the same policy in the
way of `align.rollout.sync`: weights merged into the running engine, or an adapter named by each request. A round is a
PPO step's batch of questions, the same for both, with the same sampling parameters (a seed each, banned tokens,
log-probabilities of the sampled tokens) and therefore the same responses. Each round has scenes of its own: nothing of
it is in a cache. Loading the policy is in neither side.

* Ours is `RolloutWorker.generate`, from image files and token ids to token ids and log-probabilities.
* Theirs is one call of `generate` with decoded images and ready sampling parameters, whose outputs stay as they are.
"""

import tempfile
from typing import Any

from actors.alignment.rollout import PolicyVersion, Rollout, RolloutRequest, RolloutWorker, sampling_options
from actors.engine.start import image_prompt, reload_weights, start_engine
from benchmarks.ppo_rounds import Question, Rounds, draw_questions, load_policy, take_turns
from fgaif_ray.config import Config, change_config
from fgaif_ray.images import load_image
from fgaif_ray.rl.policy import PolicyModel
from fgaif_ray.rl.self_check import compare
from fgaif_ray.vlm.backbone import Backbone
from fgaif_ray.vlm.merging import merged_weights

THREADS = 1
COMPARED = 16
"""Responses whose log-probabilities the learner computes again."""


def measure(config: Config, rounds: int, device: str = "cpu") -> tuple[Rounds, float]:
    """Tokens per second of both, and how far the worker's log-probabilities are from the learner's.

    Args:
        config: its policy and align sections are measured.
        rounds: that are counted.
        device: of the learner; the engines find theirs by themselves.

    Returns:
        The rounds, and the mean difference over tokens, nats.
    """
    config = change_config(config, [f"align.rollout.engine.threads={THREADS}"])
    model = load_policy(config, device)
    backbone, size = model.backbone, config.align.rollout_batch_size
    banned = backbone.front_end.banned_token_ids
    with tempfile.TemporaryDirectory() as images, tempfile.TemporaryDirectory() as folder:
        questions = [draw_questions(config.data.prompts, number * size, size, images) for number in range(rounds + 1)]
        model.save_policy(folder)
        version = PolicyVersion(1, folder)
        worker = RolloutWorker(config, banned)
        worker.serve(version)
        requests = [
            [RolloutRequest(backbone.front_end.prompt_ids(one.prompt), (one.image,), one.seed) for one in batch]
            for batch in questions
        ]
        bare = _Bare(config, banned, folder)
        prompts = [_prompts(backbone, batch) for batch in questions]
        parameters = [bare.parameters(batch) for batch in questions]

        def ours(number: int) -> int:
            found = worker.generate(requests[number], version)
            return sum(len(rollout.token_ids) for rollout in found if isinstance(rollout, Rollout))

        def theirs(number: int) -> int:
            return bare.generate(prompts[number], parameters[number])

        found = take_turns(ours, theirs, rounds)
        sampled = [one for one in worker.generate(requests[0], version) if isinstance(one, Rollout)]
        difference = _difference(model, questions[0][:COMPARED], sampled[:COMPARED])
    tokens = sum(len(one.token_ids) for one in sampled) / size
    print(f"rollout: {size} responses a round, {tokens:.1f} tokens each, sync {config.align.rollout.sync}")
    return found, difference


def _difference(model: PolicyModel, questions: list[Question], rollouts: list[Rollout]) -> float:
    images = [load_image(one.image) for one in questions]
    responses, log_probs = [one.token_ids for one in rollouts], [one.log_probs for one in rollouts]
    return compare(model, images, responses, log_probs, [one.prompt for one in questions]).difference


class _Bare:
    """An engine that serves the policy, and nothing around it."""

    def __init__(self, config: Config, banned: list[int], folder: str) -> None:
        from vllm.lora.request import LoRARequest

        rollout = config.align.rollout
        merged = rollout.sync == "merged"
        rank = None if merged else config.align.lora.rank
        self._engine = start_engine(
            config.policy.model, rollout.engine, lora_rank=rank, seed=config.run.seed, log_probs=1, banned=len(banned)
        )
        self._adapter = None if merged else LoRARequest("policy", 1, folder)
        if merged:
            reload_weights(self._engine, merged_weights(config.policy.model, folder))
        self._options = sampling_options(rollout, banned)

    def parameters(self, questions: list[Question]) -> list[Any]:
        """Of each question's sampling."""
        from vllm import SamplingParams

        return [SamplingParams(seed=question.seed, **self._options) for question in questions]

    def generate(self, prompts: list[Any], parameters: list[Any]) -> int:
        """Samples, and counts the tokens."""
        results = self._engine.generate(prompts, parameters, lora_request=self._adapter, use_tqdm=False)
        return sum(len(result.outputs[0].token_ids) for result in results)


def _prompts(backbone: Backbone, questions: list[Question]) -> list[Any]:
    return [image_prompt(backbone.front_end.prompt_ids(one.prompt), [load_image(one.image)]) for one in questions]
