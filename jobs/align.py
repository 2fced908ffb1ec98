"""Align the policy with PPO on the dense rewards of the reward models, and publish `policy/`.

`policy/` holds the PEFT adapter with its card, `metrics.jsonl` (a line per step), `samples.jsonl` (responses with their
sub-sentences, verdicts and rewards) and `tensorboard/`. An interrupted run goes on from its last checkpoint.
`--export-merged FOLDER` writes the aligned model, adapter merged in, as a checkpoint of its own.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

from fgaif_ray import storage
from fgaif_ray.cluster import resources
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.progress import Progress, say
from fgaif_ray.rewards.files import published_reward_folders, published_versions
from fgaif_ray.storage import stages
from fgaif_ray.vlm.front_end import load_front_end
from jobs.align_export import MODES
from jobs.cli import find_user_error, main
from jobs.plan import plan_mode

if TYPE_CHECKING:
    from fgaif_ray.sources import ImageSets

TRAIN_FOLDER: Final = "train"
"""Ray Train's own folder inside the partial stage: its checkpoints."""
MAX_FAILURES: Final = 3
"""Learner workers that may die before the job does; each time it goes on from the last checkpoint."""
FOLLOW_EVERY_S: Final = 1.0


@storage.writes_run("align")
def run(config: Config) -> None:
    """Run PPO and publish ``policy/``; its reward service and rollout workers live no longer than that.

    A reward service that runs already with the same models is used, and stays.

    Raises:
        UserError: the reward models are missing, the critic cannot start from the wanted one, or the run was stopped
            (by a guard, say); the message holds the reason, and checkpoints stay in ``policy.partial``.
    """
    from fgaif_ray.sources import prepare_images
    from fgaif_ray.vlm.checkpoint import check_checkpoint

    started = time.monotonic()
    published_reward_folders(config)  # what is missing is told before images are prepared
    if storage.read_manifest(config.run.dir, stages.POLICY) is None:
        for model in (config.policy.model, config.rewards.backbone):
            check_checkpoint(model)
    sets = prepare_images(config)
    if not sets.align:
        raise UserError("No images are left for PPO: give more images, or lower data.sample_images.")
    stage = stages.policy(config, sets, published_versions(config))
    if stage.is_complete():
        say(f"align: {stage.folder} is up to date.")
        return

    from actors.cluster.connect import connect
    from fgaif_ray.rl.trackers import require_packages

    require_packages(config.align.tracking)
    asked = (prompt for _, prompt in sets.questions(sets.align, config.data.prompts))
    front_end = load_front_end(config.policy.model)
    front_end.check_prompts(asked, config.align.rollout.engine.max_model_len)
    stage.begin(overwrite=config.run.overwrite)
    with connect(config), _reward_app(config) as app_name:
        steps, done_before = _train(config, stage, sets, app_name, front_end.banned_token_ids)
    goodput = _finish(config, stage, steps, done_before, time.monotonic() - started)
    say(f"align: {steps} PPO steps, the aligned policy's adapter is in {stage.folder}. Goodput {goodput:.0%}.")


def _train(
    config: Config, stage: storage.Stage, sets: "ImageSets", app_name: str, banned: Sequence[int]
) -> tuple[int, int]:
    """Runs rollout workers and the learner to the last step; returns their number and how many an earlier call did."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    from actors.alignment.learner import LearnerTask, train
    from actors.alignment.rollout import rollout_workers
    from actors.cluster.device import torch_config
    from actors.cluster.lost_nodes import is_loss

    align = config.align
    critic = align.critic_from_reward
    folder = stage.partial if not storage.is_local(stage.partial) else os.path.abspath(stage.partial)
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # learners keep this folder: relative paths mean the same there
    with rollout_workers(config, banned) as workers:
        task = LearnerTask(
            config=config,
            images=tuple(sets.align),
            folder=folder,
            critic_from=published_reward_folders(config)[critic] if critic is not None else None,
            reward_app=app_name,
            rollout_workers=tuple(workers),
            own_prompts=None if sets.prompts is None else {image: sets.prompts[image] for image in sets.align},
        )
        trainer = TorchTrainer(
            cast("Any", train),  # Ray's annotation does not know that a loop may return
            train_loop_config={"task": task},
            torch_config=torch_config(),
            scaling_config=ScalingConfig(**resources.learner(config).scaling()),
            run_config=RunConfig(
                name=TRAIN_FOLDER,
                storage_path=folder,
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
            ),
        )
        try:
            result, done_before = _fit(trainer, folder, align.steps)
        except TrainingFailedError as error:
            if find_user_error(error) is None and is_loss(error):
                raise UserError(
                    f"PPO lost workers or their nodes more than {MAX_FAILURES} times: see why in the dashboard or with "
                    "`ray list nodes`, then run the same command again, which goes on from the last checkpoint."
                ) from error
            raise
    outcome: dict[str, Any] = result.return_value
    if outcome["stopped"] is not None:
        kept = f" The last good checkpoint is in {result.checkpoint.path}." if result.checkpoint is not None else ""
        reason = outcome["stopped"].rstrip(".")
        raise UserError(f"PPO was stopped at step {outcome['steps']} of {align.steps}: {reason}.{kept}")
    steps: int = outcome["steps"]
    return steps, done_before


@contextmanager
def _reward_app(config: Config) -> Iterator[str]:
    """The name of the Serve application that scores; one that was not there before goes when the block ends."""
    from ray import serve

    from actors.rewards import service as reward_service

    there = config.serve.app_name in serve.status().applications
    info = reward_service.deploy(config, published_reward_folders(config))
    try:
        yield info.app_name
    finally:
        if not there:
            reward_service.shutdown(config.serve.app_name)


def _fit(trainer: Any, folder: str, steps: int) -> tuple[Any, int]:
    """Ray Train's result, and the steps that were there before; meanwhile shows the metrics that the learner writes."""
    from fgaif_ray.rl.run_log import METRICS_FILE, read_lines
    from fgaif_ray.rl.watch import progress_note

    ends: list[Any] = []

    def fit() -> None:
        try:
            ends.append(trainer.fit())
        except BaseException as error:
            ends.append(error)

    # In the main thread fit() would replace the SIGINT handler, and end the process with status 0 on Ctrl-C.
    thread = threading.Thread(target=fit, name="align trainer", daemon=True)
    thread.start()
    uri = storage.join(folder, METRICS_FILE)
    previous = shown = done_before = max((row["step"] for row in read_lines(uri)), default=0)
    with Progress("align", steps, "steps", initial=shown, interval=0.0) as progress:
        going = True
        while going:
            thread.join(FOLLOW_EVERY_S)
            going = thread.is_alive()
            rows = read_lines(uri)
            last = max((row["step"] for row in rows), default=0)
            if last < previous:
                say(f"align: the learner has lost its last steps and goes on after step {last}.")
            previous = last
            for row in rows:
                if row["step"] > shown:
                    shown = row["step"]
                    progress.advance(note=progress_note(row))
    if isinstance(ends[0], BaseException):
        raise ends[0]
    return ends[0], done_before


def _finish(config: Config, stage: storage.Stage, steps: int, done_before: int, seconds: float) -> float:
    """Removes what only a running PPO needs, adds the card, publishes.

    Returns:
        The goodput: the share of the seconds that went into steps which count. Starting, checkpoints, and steps that
        were lost in an interruption and done again are the rest.
    """
    from actors.alignment.policy_versions import ADAPTERS_FOLDER
    from fgaif_ray.rl.run_log import METRICS_FILE, read_lines

    rows = read_lines(storage.join(stage.partial, METRICS_FILE))
    for name in (TRAIN_FOLDER, ADAPTERS_FOLDER):
        storage.remove_folder(storage.join(stage.partial, name))
    storage.write_bytes(storage.join(stage.partial, "README.md"), _card(config, rows).encode())
    goodput: float = sum(row["timing/step"] for row in rows if row["step"] > done_before) / seconds
    stage.publish({"steps": steps, "seconds": round(seconds, 1), "goodput": round(goodput, 3)})
    return goodput


def _card(config: Config, rows: list[dict[str, Any]]) -> str:
    names = ["reward/total", *(f"reward/{kind}" for kind in config.run.type_names)]
    names += ["facts/per_response", "response/length", "kl/per_response"]
    table = "\n".join(f"| {name} | {_figure(rows[0][name])} | {_figure(rows[-1][name])} |" for name in names)
    settings = json.dumps(config.align.model_dump(mode="json", exclude={"tracking"}), indent=2)
    return f"""---
base_model: {config.policy.model}
library_name: peft
tags: [lora, ppo, vision-language]
---
# Policy aligned with fine-grained AI feedback

A LoRA adapter for `{config.policy.model}`, trained with PPO on dense rewards: after each sub-sentence, what the
reward models ({", ".join(config.run.type_names)}) say about it. Method: FGAIF (arXiv 2404.05046).

| mean over a step's responses | first step | last step |
|---|---|---|
{table}

Rewards are the reward models' judgement, not the truth. {len(rows)} steps of {config.align.rollout_batch_size}
responses.

```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText

model = AutoModelForImageTextToText.from_pretrained("{config.policy.model}")
model = PeftModel.from_pretrained(model, "THIS FOLDER")
```

Without PEFT: `python -m jobs.align --config CONFIG --export-merged FOLDER` writes a checkpoint with the adapter merged
in. With vLLM: `vllm serve {config.policy.model} --enable-lora --max-lora-rank {config.align.lora.rank} --lora-modules
aligned=THIS_FOLDER`.

Settings:

```json
{settings}
```
"""


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    sys.exit(main("align", __doc__, run, modes=(*MODES, plan_mode("serve_rewards", "align"))))
