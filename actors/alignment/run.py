"""Alignment from a begun stage to the published policy: reward service, rollout workers and Ray Train put together; or
Ray Train alone, where preferences are learnt from.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

from ray import serve
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from actors.alignment.policy_versions import ADAPTERS_FOLDER
from actors.alignment.rollout import rollout_workers
from actors.alignment.tasks import LearnerTask, PreferenceTask, learn_from_preferences, learn_from_rewards
from actors.cluster.device import torch_config
from actors.cluster.failed_workers import FailureNews, noting_failures
from actors.cluster.lost_nodes import is_loss
from actors.rewards import service as reward_service
from fgaif_ray import storage
from fgaif_ray.cluster import resources
from fgaif_ray.config import AlignConfig, Config, DataConfig
from fgaif_ray.errors import UserError, find_user_error
from fgaif_ray.progress import Progress, say
from fgaif_ray.rewards.files import published_reward_folders
from fgaif_ray.rl.plan import Draw
from fgaif_ray.rl.policy_card import policy_card
from fgaif_ray.rl.run_log import METRICS_FILE, read_lines
from fgaif_ray.rl.watch import progress_note
from fgaif_ray.shapes.scenes import Scene
from fgaif_ray.sources import Images, ImageSets

TRAIN_FOLDER: Final = "train"
"""Ray Train's own folder inside the partial stage: its checkpoints, and why workers failed."""
MAX_FAILURES: Final = 3
"""Learner workers that may die before the job does; each time it goes on from the last checkpoint."""
FOLLOW_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class TrainedPolicy:
    """What a training leaves beside its files."""

    steps: int
    done_before: int
    """Steps that an earlier call did."""
    best: dict[str, Any] | None
    """``step``, ``metric`` and ``value`` of the policy that is published in place of the last one."""


@contextmanager
def reward_app(config: Config) -> Iterator[str]:
    """The name of the Serve application that scores; one that was not there before goes when the block ends."""
    there = config.serve.app_name in serve.status().applications
    info = reward_service.deploy(config, published_reward_folders(config))
    try:
        yield info.app_name
    finally:
        if not there:
            reward_service.shutdown(config.serve.app_name)


def askable_prompts(sets: ImageSets, data: DataConfig) -> dict[Images, list[str]]:
    """Find the images to align on with the prompts that can be asked about them; the others are said with the reason.

    Raises:
        UserError: none can be asked.
    """
    found: dict[Images, list[str]] = {}
    refused: list[str] = []
    for images in sets.align:
        for prompt in data.prompts if sets.prompts is None else sets.prompts[images]:
            try:
                data.check_prompt(prompt, len(images))
            except ValueError as error:
                refused.append(f"{', '.join(images)}: {error}")
            else:
                found.setdefault(images, []).append(prompt)
    if not found:
        raise UserError(f"None of the prompts for PPO can be asked; the first, about {refused[0]}.")
    if refused:
        say(f"align: {len(refused)} prompts cannot be asked and are left out; the first, about {refused[0]}.")
    return found


def hold_out(
    asked: Mapping[Images, Sequence[str]], align: AlignConfig
) -> tuple[dict[Images, Sequence[str]], tuple[Draw, ...]]:
    """Take the images of the evaluations while training, if there are any, from those to align on.

    Returns:
        Those that are left, of which none has an image in common with the others, and what is asked about the others.

    Raises:
        UserError: none are left.
    """
    if align.evaluate_every is None:
        return dict(asked), ()
    chosen = list(asked)[-align.evaluate_images :]
    shown = {path for images in chosen for path in images}
    rest = {images: prompts for images, prompts in asked.items() if not shown & set(images)}
    if not rest or len(chosen) < align.most_workers:
        raise UserError(
            f"align.evaluate_images={align.evaluate_images} holds out {len(chosen)} of {len(asked)} images to align on "
            f"and leaves {len(rest)}: hold out fewer, or give more images (data.align_images)."
        )
    draws = tuple(
        Draw(f"evaluation-{place}", images, asked[images][place % len(asked[images])], 0)
        for place, images in enumerate(chosen)
    )
    return rest, draws


def train_policy(
    config: Config,
    stage: storage.Stage,
    asked: Mapping[Images, Sequence[str]],
    app_name: str,
    banned: Sequence[int],
    evaluation: Sequence[Draw] = (),
    truth: Mapping[str, Scene] | None = None,
) -> TrainedPolicy:
    """Run rollout workers and the learner to the last step.

    Args:
        config: the configuration.
        stage: of the policy, begun.
        asked: the images to align on, with their prompts.
        app_name: of the Serve application that scores.
        banned: token ids that are never sampled.
        evaluation: images and prompts to evaluate on while training.
        truth: the scenes behind images, where they are known.

    Raises:
        UserError: see ``_run_learners``.
    """
    critic = config.align.critic_from_reward
    with rollout_workers(config, banned) as workers:
        task = LearnerTask(
            config=config,
            images=tuple(asked),
            folder=_absolute(stage.partial),
            critic_from=published_reward_folders(config)[critic] if critic is not None else None,
            reward_app=app_name,
            rollout_workers=tuple(workers),
            own_prompts=asked,
            evaluation=tuple(evaluation),
            truth=None if truth is None else {path: truth[path] for draw in evaluation for path in draw.images},
        )
        return _run_learners(config, learn_from_rewards, task, task.folder)


def train_on_preferences(config: Config, stage: storage.Stage) -> TrainedPolicy:
    """Run the learner on the preferences of ``feedback/`` to the last step; see ``train_policy``.

    Raises:
        UserError: see ``_run_learners``.
    """
    task = PreferenceTask(config, _absolute(stage.partial))
    return _run_learners(config, learn_from_preferences, task, task.folder)


def _absolute(folder: str) -> str:
    return os.path.abspath(folder) if storage.is_local(folder) else folder


def _run_learners(config: Config, loop: Callable[[dict[str, Any]], Any], task: Any, folder: str) -> TrainedPolicy:
    """Run Ray Train's workers to the last step.

    Raises:
        UserError: workers were lost too often, or the run was stopped (by a guard, say); checkpoints stay.
    """
    align = config.align
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # learners keep this folder: relative paths mean the same there
    trainer = TorchTrainer(
        cast("Any", loop),  # Ray's annotation does not know that a loop may return
        train_loop_config={"task": task},
        torch_config=torch_config(),
        scaling_config=ScalingConfig(**resources.learner(config).scaling()),
        run_config=RunConfig(
            name=TRAIN_FOLDER,
            storage_path=folder,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            callbacks=noting_failures(storage.join(folder, TRAIN_FOLDER)),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    name = align.algorithm.upper()
    try:
        result, done_before = _fit(trainer, folder, align.steps)
    except TrainingFailedError as error:
        if find_user_error(error) is None and is_loss(error):
            raise UserError(
                f"{name} lost workers or their nodes more than {MAX_FAILURES} times: see why in the dashboard or with "
                "`ray list nodes`, then run the same command again, which goes on from the last checkpoint."
            ) from error
        raise
    outcome: dict[str, Any] = result.return_value
    if outcome["stopped"] is not None:
        kept = f" The last good checkpoint is in {result.checkpoint.path}." if result.checkpoint is not None else ""
        reason = outcome["stopped"].rstrip(".")
        raise UserError(f"{name} was stopped at step {outcome['steps']} of {align.steps}: {reason}.{kept}")
    return TrainedPolicy(outcome["steps"], done_before, outcome.get("best"))


def _fit(trainer: Any, folder: str, steps: int) -> tuple[Any, int]:
    """Ray Train's result, and the steps that were there before; meanwhile shows the metrics that the learner writes."""
    ends: list[Any] = []

    def fit() -> None:
        try:
            ends.append(trainer.fit())
        except BaseException as error:
            ends.append(error)

    # In the main thread fit() would replace the SIGINT handler, and end the process with status 0 on Ctrl-C.
    thread = threading.Thread(target=fit, name="align trainer", daemon=True)
    failures = FailureNews(
        storage.join(folder, TRAIN_FOLDER), lambda line: say(f"align: the learner has failed: {line}")
    )
    thread.start()
    uri = storage.join(folder, METRICS_FILE)
    previous = shown = done_before = max((row["step"] for row in read_lines(uri)), default=0)
    with Progress("align", steps, "steps", initial=shown, interval=0.0) as progress:
        going = True
        while going:
            thread.join(FOLLOW_EVERY_S)
            going = thread.is_alive()
            if going:  # else the error itself is told
                failures.look(f"it starts again from the last checkpoint, at most {MAX_FAILURES} times.")
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


def publish_policy(config: Config, stage: storage.Stage, trained: TrainedPolicy, seconds: float) -> float:
    """Remove what only a running alignment needs, add the card, publish.

    Returns:
        The goodput: the share of the seconds that went into steps which count. Starting, checkpoints, and steps that
        were lost in an interruption and done again are the rest.
    """
    rows = read_lines(storage.join(stage.partial, METRICS_FILE))
    for name in (TRAIN_FOLDER, ADAPTERS_FOLDER):
        storage.remove_folder(storage.join(stage.partial, name))
    storage.write_bytes(storage.join(stage.partial, "README.md"), policy_card(config, rows).encode())
    goodput: float = sum(row["timing/step"] for row in rows if row["step"] > trained.done_before) / seconds
    best = {} if trained.best is None else {"best": trained.best}
    stage.publish({"steps": trained.steps, "seconds": round(seconds, 1), "goodput": round(goodput, 3), **best})
    return goodput
