"""Training of the reward models under Ray Train.

    driver: polls a queue, shows progress            <- queue of progress messages
      thread: TorchTrainer.fit()
        worker 0..n-1: one backbone; for each task that the stage's partial folder lacks: train, rank 0 saves

Start-up is paid once for all tasks (a model per fact type, or one; see ``fgaif_ray.rewards.kinds``). After each epoch
rank 0 writes a checkpoint into the partial folder: a worker that dies, or the same command after an interruption, goes
on from there.
"""

import os
import tempfile
import threading
import time
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors import metrics as exported
from actors.cluster.device import torch_config, worker_device
from actors.cluster.failed_workers import FailureNews, noting_failures
from fgaif_ray import storage
from fgaif_ray.cluster import resources
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.progress import Progress, say
from fgaif_ray.records import FEEDBACK_COLUMNS, Feedback
from fgaif_ray.rewards.files import METRICS_FILE, settings_of
from fgaif_ray.rewards.kinds import RewardTask, reward_tasks

if TYPE_CHECKING:
    from fgaif_ray.rewards.data import RewardData
    from fgaif_ray.rewards.domain import ImageDomain
    from fgaif_ray.rewards.model import RewardModel
    from fgaif_ray.vlm.backbone import Backbone

REPORT_SECONDS: Final = 1.0
POLL_SECONDS: Final = 0.5
MAX_FAILURES: Final = 3
"""Deaths of workers before the job ends."""


def train_reward_models(config: Config, feedback: str, partial: str) -> None:
    """Train the reward models that ``partial`` does not hold yet, each into its own subfolder.

    Args:
        config: its ``rewards`` section says how and on what resources.
        feedback: folder of the labelled responses.
        partial: partial folder of the stage.

    Raises:
        UserError: the feedback or backbone is unusable.
        Exception: workers failed too often; the cause is Ray Train's error.
    """
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # workers keep the driver's folder: relative paths mean the same there
    # Beside this process: elsewhere it would be lost with its node, and the job with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    messages = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    scratch = storage.join(config.run.dir, "rewards.train")
    trainer = TorchTrainer(
        cast("Any", _train_worker),  # Ray's annotation does not know that a loop may return
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "feedback": feedback,
            "partial": partial,
            "messages": messages,
        },
        torch_config=torch_config(),
        scaling_config=ScalingConfig(**resources.reward_trainer(config).scaling()),
        run_config=RunConfig(
            name="rewards",
            storage_path=os.path.abspath(scratch) if storage.is_local(scratch) else scratch,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            callbacks=noting_failures(scratch),
        ),
    )
    # In the main thread fit() would replace the SIGINT handler, and end the process with status 0 on Ctrl-C.
    outcome: list[Any] = []
    thread = threading.Thread(target=_fit, args=(trainer, outcome), daemon=True, name="reward-trainer")
    failures = FailureNews(scratch, lambda line: say(f"train_rewards: a trainer has failed: {line}"))
    thread.start()
    display = _Display()
    while thread.is_alive():
        display.show(messages, POLL_SECONDS)
        failures.look(f"all start again from what is finished, at most {MAX_FAILURES} times.")
    display.show(messages, 0)
    display.close()
    messages.shutdown()
    storage.remove_folder(scratch)
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    if outcome[0].return_value is not None:
        raise UserError(outcome[0].return_value)


def _fit(trainer: TorchTrainer, outcome: list[Any]) -> None:
    try:
        outcome.append(trainer.fit())
    except BaseException as error:  # handed to the main thread
        outcome.append(error)


class _Display:
    """Display of the workers' messages: ``("line", text)``, ``("begin", name, total, unit)`` and
    ``("advance", count, note)``.
    """

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def show(self, messages: Queue, wait_s: float) -> None:
        """Show what has come, waiting for the first message."""
        while True:
            try:
                kind, *content = messages.get(block=wait_s > 0, timeout=wait_s or None)
            except Empty:
                return
            if kind == "advance" and self._progress is not None:
                self._progress.advance(*content)
            else:
                self.close()
                if kind == "begin":
                    name, total, unit = content
                    self._progress = Progress(name, total, unit)
                else:
                    say(content[0])

    def close(self) -> None:
        """End the current bar."""
        if self._progress is not None:
            self._progress.close()
            self._progress = None


class Reporter:
    """Reporter of progress from rank 0 to the driver, about once a second."""

    def __init__(self, messages: Queue | None) -> None:
        self._messages = messages
        self._count = 0
        self._sent = time.monotonic()

    def send(self, *message: Any) -> None:
        """Send a message at once, after the count that waits."""
        self._flush("")
        self._put(*message)

    def advance(self, count: int, note: str = "") -> None:
        """Count finished units; a note that comes without any is sent at once."""
        self._count += count
        if count == 0 or time.monotonic() - self._sent >= REPORT_SECONDS:
            self._flush(note)

    def _flush(self, note: str) -> None:
        if self._count or note:
            self._put("advance", self._count, note)
            self._count = 0
        self._sent = time.monotonic()

    def _put(self, *message: Any) -> None:
        if self._messages is not None:
            self._messages.put_nowait(message)


def _train_worker(settings: dict[str, Any]) -> str | None:
    """Run one Ray Train worker; returns what a person has to change if no worker can begin."""
    import ray.train
    import torch

    from fgaif_ray.vlm.group import LearnerGroup

    config = Config.model_validate(settings["config"])
    rewards, partial = config.rewards, settings["partial"]
    if rewards.threads is not None:
        torch.set_num_threads(rewards.threads)
    first = ray.train.get_context().get_world_rank() == 0
    reporter = Reporter(settings["messages"] if first else None)
    if not missing_tasks(config, partial):
        return None
    prepared, problem = None, None
    try:
        prepared = _prepare(config, settings["feedback"], reporter)
    except UserError as error:
        problem = error
    group = LearnerGroup(worker_device())
    if int(group.sum(torch.tensor(int(problem is not None)))) == group.size:
        return str(problem)  # raised, it would be tried again
    if problem is not None:
        raise problem  # of this worker alone: it ends the others
    assert prepared is not None
    train_missing(config, partial, *prepared, reporter if first else None)
    return None


def _prepare(config: Config, feedback: str, reporter: "Reporter") -> "tuple[Backbone, RewardData]":
    """Load backbone and examples of one worker.

    Raises:
        UserError: they cannot be used.
    """
    from fgaif_ray.blind import blindfold
    from fgaif_ray.rewards.data import TrainingResponse, from_feedback, prepare_data
    from fgaif_ray.rewards.planted import planted_responses
    from fgaif_ray.rewards.self_check import require_backbone
    from fgaif_ray.vlm.backbone import load_backbone

    rewards = config.rewards
    backbone = load_backbone(rewards.backbone, rewards.dtype, rewards.quantisation, config.data.chat_template_kwargs)
    backbone.move_to(worker_device())
    require_backbone(backbone, config.data.images_per_prompt, config.data.pixel_budget)
    rows = [Feedback.from_row(row) for row in storage.read_rows(feedback, FEEDBACK_COLUMNS)]
    rows.sort(key=lambda row: row.response.sample_id)
    responses = from_feedback(rows, config.run.type_names)
    reporter.send("begin", "read feedback", len(responses), "responses")

    def plant(digests: Set[str]) -> list[TrainingResponse]:
        known = [row for row in rows if row.response.image_sha256 in digests]
        return planted_responses(known, config.run.types, rewards.planted_share, config.run.seed)

    data = prepare_data(
        backbone,
        responses,
        rewards.validation_fraction,
        config.run.seed,
        reporter.advance,
        config.data.pixel_budget,
        plant,
        blindfold(config, "rewards", [one.images for one in responses]).shown,
    )
    counts = " and ".join(
        f"{part['responses']} responses ({part['segments']} segments, {part['images']} images) to {purpose}"
        for part, purpose in ((data.counts["train"], "train on"), (data.counts["validation"], "hold out"))
    )
    reporter.send("line", f"reward models: {counts}")
    return backbone, data


def missing_tasks(config: Config, partial: str) -> list[RewardTask]:
    """List the tasks of this kind of reward model that are not yet complete in a folder."""
    tasks = reward_tasks(config.rewards.kind, config.run.type_names)
    return [task for task in tasks if not all(is_trained(partial, name) for name in task.fact_types)]


def train_missing(
    config: Config, partial: str, backbone: "Backbone", data: "RewardData", reporter: Reporter | None
) -> None:
    """Train the missing tasks over one backbone.

    Args:
        config: its ``rewards`` section says how.
        partial: folder that gets a subfolder per fact type, and checkpoints meanwhile.
        backbone: gets the adapters.
        data: examples.
        reporter: shows progress; None in a worker that is not the first, and writes nothing.
    """
    from fgaif_ray.rewards.checkpoint import TrainingCheckpoint
    from fgaif_ray.rewards.data import FeatureCache, domain_of
    from fgaif_ray.rewards.model import RewardModel
    from fgaif_ray.rewards.training import examples_of, train_reward_model
    from fgaif_ray.vlm.group import LearnerGroup

    model, rewards = RewardModel(backbone), config.rewards
    features = FeatureCache(backbone, budget=config.data.pixel_budget)
    tasks = reward_tasks(rewards.kind, config.run.type_names)
    reporter, first = reporter or Reporter(None), reporter is not None

    def advance(count: int, note: str = "") -> None:
        if first:
            exported.REWARD_TRAINING_RESPONSES.inc(count, model=task.name)
        reporter.advance(count, note)

    domains: list[ImageDomain | None] = []
    for task in missing_tasks(config, partial):
        reporter.send("begin", f"reward model {task.name}", len(examples_of(task, data)) * rewards.epochs, "responses")
        seed = config.run.seed + tasks.index(task)
        checkpoint = TrainingCheckpoint(partial, task.name)
        metrics = train_reward_model(model, task, data, features, rewards, seed, advance, checkpoint)
        if not domains:  # after the images have been encoded
            domains.append(domain_of(data, features, LearnerGroup(backbone.device)))
        if domains[0] is not None:
            model.domains |= dict.fromkeys(task.heads, domains[0])
        if first:
            for name in task.fact_types:
                _save(model, task, metrics[name], config, partial)
                exported.REWARD_TRAINING_ACCURACY.set(metrics[name]["balanced_accuracy"], fact_type=name)
                exported.REWARD_TRAINING_CALIBRATION.set(metrics[name]["expected_calibration_error"], fact_type=name)
            checkpoint.remove()
        for name in task.heads:
            figures = metrics[name if name in metrics else task.fact_types[0]]
            reporter.send(
                "line",
                f"reward model {name}: held-out balanced accuracy {figures['balanced_accuracy']:.3f}, calibration "
                f"error {figures['expected_calibration_error']:.3f} (epoch {figures['best_epoch']} of "
                f"{len(figures['curve'])}, {figures['seconds']:.0f} s)",
            )


def is_trained(folder: str, fact_type: str) -> bool:
    """Tell whether the subfolder of a type is complete: its metrics are written last."""
    return storage.exists(storage.join(folder, fact_type, METRICS_FILE))


def _save(model: "RewardModel", task: RewardTask, metrics: dict[str, Any], config: Config, partial: str) -> None:
    from fgaif_ray.rewards.card import model_card
    from fgaif_ray.rewards.model_files import save_reward_model
    from fgaif_ray.sources.names import source_name

    fact_type = metrics["fact_type"]
    folder = storage.join(partial, fact_type)
    domain = model.domains.get(task.head_of(fact_type))
    metrics = metrics | {
        "source": source_name(config.data),
        "domain": None if domain is None else domain.card().model_dump(),
        "settings": settings_of(config),
    }
    with tempfile.TemporaryDirectory() as temporary:
        save_reward_model(model, fact_type, Path(temporary), task.head_of(fact_type))
        (Path(temporary) / "README.md").write_text(model_card(metrics, config.rewards))
        storage.upload_folder(temporary, folder)
    storage.write_json(storage.join(folder, METRICS_FILE), metrics)
