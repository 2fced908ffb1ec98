"""Responses per second of whole PPO steps, over those of TRL's `GRPOTrainer`, with a trivial reward.

Both run in this process, one after the other, round after round, with the same number of torch threads. A round is a
step: the same questions (TRL wants two responses to each at least, so both sample two), responses as long as they come
at temperature 1, a reward that reads the text, and as many updates: epochs, minibatches, micro-batches and LoRA
adapters are the configuration's. Learning rates are so low that responses keep their length.

* Ours is what the job's processes do for a step, called here one after the other: the adapter is written and loaded by
  the rollout worker, which samples with vLLM; images are decoded and go through the vision tower; passes of policy,
  reference and critic; advantages; updates of policy and critic; the step's metrics.
* TRL's is its own loop: generation by transformers, passes of policy (it needs one as there are several updates to a
  batch) and reference (beta is not zero; the model without its adapter, as ours), updates of the policy, its metrics.
  It has no critic. Gradient checkpointing, which it would turn on, is off.

Neither has a reward service, and neither writes checkpoints.
"""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from actors.alignment.rollout import PolicyVersion, Rollout, RolloutRequest, RolloutWorker
from benchmarks.ppo_rounds import Question, Rounds, draw_questions, load_policy
from fgaif_ray.config import Config, change_config
from fgaif_ray.images import load_image
from fgaif_ray.rl.micro_batches import ESTIMATE_FACTOR
from fgaif_ray.rl.step import PPOUpdater, estimate, prepare
from fgaif_ray.rl.trajectories import Trajectory, collate
from fgaif_ray.rl.watch import trajectory_metrics
from fgaif_ray.vlm.backbone import load_backbone
from fgaif_ray.vlm.group import LearnerGroup

SAMPLES: Final = 2
"""Responses to each question, the fewest that TRL takes."""
THREADS: Final = 1
LEARNING_RATE: Final = 1e-9


def trivial_reward(texts: Sequence[str]) -> list[float]:
    """One for a response that says something."""
    return [float(bool(text.strip())) for text in texts]


class OwnStep:
    """Rollout worker, learner and a trivial reward in one process."""

    def __init__(self, config: Config, folder: Path) -> None:
        """Starts the engine; versions of the policy go into the folder."""
        align = config.align
        self._config, self._folder = config, folder
        self._model = load_policy(config)
        self._group = LearnerGroup(self._model.device)
        self._updater = PPOUpdater(self._model, align.ppo, self._group, align.steps)
        self._worker = RolloutWorker(config, self._model.backbone.front_end.banned_token_ids)
        self._updates = math.ceil(align.rollout_batch_size / align.ppo.minibatch_size)
        torch.set_num_threads(THREADS)  # whatever the engine has set
        self.tokens = 0
        """Of all responses."""

    def step(self, number: int, questions: Sequence[Question]) -> dict[str, float]:
        """Samples, rewards and learns; returns the step's metrics."""
        align, model = self._config.align, self._model
        version = PolicyVersion(number, str(self._folder / f"v{number}"))
        model.save_policy(version.folder)
        self._worker.serve(version)
        rollouts, images = self._sample(questions, version)
        rows = model.encode(
            [one.prompt for one in questions for _ in range(SAMPLES)], images, [one.token_ids for one in rollouts]
        )
        tokens = align.ppo.micro_batch_tokens
        estimates = estimate(
            model,
            rows,
            align.ppo.micro_batch_size * ESTIMATE_FACTOR,
            batch_tokens=None if tokens is None else tokens * ESTIMATE_FACTOR,
        )
        trajectories = self._rewarded(questions, rollouts)
        batch = collate(trajectories, model.backbone.eos_token_id).to(model.device)
        experience = prepare(rows, batch, estimates, align.ppo, align.kl, align.kl.coefficient, self._group)
        generator = torch.Generator().manual_seed(number)
        updates = self._updater.update(experience, number, generator, self._updates)
        self.tokens += sum(len(one.token_ids) for one in rollouts)
        return trajectory_metrics(trajectories, self._config.run.type_names) | experience.metrics | updates

    def _sample(self, questions: Sequence[Question], version: PolicyVersion) -> tuple[list[Rollout], list[Any]]:
        """Responses, and the picture of each; responses to one question share the object."""
        requests, images = [], []
        for question in questions:
            ids, image = self._model.backbone.front_end.prompt_ids(question.prompt), load_image(question.image)
            for sample in range(SAMPLES):
                requests.append(RolloutRequest(ids, (question.image,), question.seed * SAMPLES + sample))
                images.append(image)
        found = self._worker.generate(requests, version)
        return [rollout for rollout in found if isinstance(rollout, Rollout)], images

    def _rewarded(self, questions: Sequence[Question], rollouts: Sequence[Rollout]) -> list[Trajectory]:
        """The reward is the last token's."""
        tokenizer = self._model.backbone.front_end.tokenizer
        texts = [tokenizer.decode(one.token_ids, skip_special_tokens=True) for one in rollouts]
        trajectories = []
        for place, (rollout, text, reward) in enumerate(zip(rollouts, texts, trivial_reward(texts), strict=True)):
            trajectories.append(
                Trajectory(
                    sample_id=str(place),
                    image="",
                    prompt=questions[place // SAMPLES].prompt,
                    token_ids=rollout.token_ids,
                    behaviour_log_probs=rollout.log_probs,
                    finish_reason=rollout.finish_reason,
                    policy_version=rollout.policy_version,
                    response=text,
                    segment_spans=(),
                    token_ends=(),
                    token_rewards=(*[0.0] * (len(rollout.token_ids) - 1), reward),
                )
            )
        return trajectories


def make_trainer(config: Config, questions: Sequence[Question], steps: int, output: str) -> tuple[Any, list[int]]:
    """TRL's trainer for as many whole steps, and a list that it adds the length of each response to."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    align, ppo = config.align, config.align.ppo
    backbone = load_backbone(config.policy.model, config.policy.dtype)
    backbone.front_end.tokenizer.padding_side = "left"
    minibatches = align.rollout_batch_size // ppo.minibatch_size
    lengths: list[int] = []

    def reward(completions: list[Any], completion_ids: list[list[int]], **_columns: Any) -> list[float]:
        lengths.extend(map(len, completion_ids))
        return trivial_reward([completion[0]["content"] for completion in completions])

    arguments = GRPOConfig(
        output_dir=output,
        max_steps=steps * ppo.epochs * minibatches,
        per_device_train_batch_size=ppo.micro_batch_size,
        gradient_accumulation_steps=ppo.minibatch_size // ppo.micro_batch_size,
        steps_per_generation=align.rollout_batch_size // ppo.micro_batch_size,
        num_iterations=ppo.epochs,
        num_generations=SAMPLES,
        max_completion_length=align.rollout.max_tokens,
        temperature=align.rollout.temperature,
        generation_kwargs={"suppress_tokens": backbone.front_end.banned_token_ids},
        beta=align.kl.coefficient,
        learning_rate=LEARNING_RATE,
        max_grad_norm=ppo.max_grad_norm,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        logging_steps=ppo.epochs * minibatches,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        seed=config.run.seed,
    )
    targets = "|".join(align.lora.target_modules)
    trainer = GRPOTrainer(
        model=backbone.model,
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list(
            [{"prompt": [{"role": "user", "content": one.prompt}], "image": load_image(one.image)} for one in questions]
        ),
        processing_class=backbone.front_end.processor,
        peft_config=LoraConfig(
            r=align.lora.rank,
            lora_alpha=align.lora.alpha,
            target_modules=rf".*language_model.*\.({targets})",
        ),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, lengths


def measure(config: Config, rounds: int) -> Rounds:
    """Responses per second of both."""
    config = change_config(
        config,
        [
            f"align.rollout.engine.threads={THREADS}",
            f"align.ppo.learning_rate={LEARNING_RATE:.1e}",
            f"align.ppo.critic_learning_rate={LEARNING_RATE:.1e}",
        ],
    )
    torch.set_num_threads(THREADS)
    size = config.align.rollout_batch_size
    count = size // SAMPLES
    with tempfile.TemporaryDirectory() as images, tempfile.TemporaryDirectory() as folder:
        questions = draw_questions(config.data.prompts, 0, (rounds + 1) * count, images)
        trainer, lengths = make_trainer(config, questions, rounds + 1, str(Path(folder) / "trl"))
        own = OwnStep(config, Path(folder))

        def ours(number: int) -> None:
            own.step(number, questions[number * count : (number + 1) * count])

        updates = config.align.ppo.epochs * (size // config.align.ppo.minibatch_size)
        turns = _turns(trainer, updates, ours)
    responses = (rounds + 1) * size
    print(
        f"trl: {size} responses a step, {own.tokens / responses:.1f} tokens each, TRL's "
        f"{sum(lengths) / len(lengths):.1f}; {updates} updates a step, sync {config.align.rollout.sync}"
    )
    return Rounds([size / seconds for seconds, _ in turns], [size / seconds for _, seconds in turns])


def _turns(trainer: Any, updates: int, ours: Callable[[int], None]) -> list[tuple[float, float]]:
    """Seconds of ours and of TRL's in each round after the first.

    TRL's loop cannot be entered step by step: ours runs in its callback when a step of it is over.
    """
    from transformers import TrainerCallback

    turns: list[tuple[float, float]] = []

    class Turns(TrainerCallback):
        began = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if trainer.state.global_step % updates == 0:
                ended = time.perf_counter()
                ours(len(turns))
                turns.append((time.perf_counter() - ended, ended - self.began))
                self.began = time.perf_counter()

    trainer.add_callback(Turns())
    trainer.train()
    return turns[1:]
