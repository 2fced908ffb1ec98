"""The verdicts of a run's reward models on the responses of a benchmark; a stage for each benchmark.

They are computed in this process, on its GPU where it has one. An interrupted run goes on from its parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from fgaif_ray import storage
from fgaif_ray.config import BenchmarkConfig, Config
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation.benchmarks.base import MarkedResponse, RewardBenchmark, Verdicts
from fgaif_ray.evaluation.benchmarks.images import ImageFolder
from fgaif_ray.evaluation.benchmarks.registry import load_reward_benchmark, settings_of
from fgaif_ray.fact_types import extracted
from fgaif_ray.images import open_images
from fgaif_ray.progress import Progress, say
from fgaif_ray.storage import stages

if TYPE_CHECKING:
    from fgaif_ray.rewards.model import RewardModel

MODEL: Final = "rewards"
"""What the reward models are called in results, where policies have their names."""
VERDICTS_SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("fact_type", pa.string(), nullable=False),
        pa.field("probabilities", pa.list_(pa.list_(pa.float32())), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class JudgedTask:
    """A benchmark that the reward models judge."""

    benchmark: RewardBenchmark
    config: BenchmarkConfig
    stage: storage.Stage
    images: dict[str, str]
    """Path or URI by official name."""
    fact_types: tuple[str, ...]
    """Types whose labels come from facts: the others say nothing about errors."""


def reward_task(config: Config, name: str) -> JudgedTask:
    """Read a benchmark of reward models.

    Raises:
        UserError: files, images or reward models are missing, or these judge whole responses.
    """
    from fgaif_ray.rewards.files import published_reward_folders, published_versions, read_folder

    stages.require(config.run.dir, stages.REWARDS)
    settings = settings_of(config.evaluate.benchmarks, name)
    benchmark = load_reward_benchmark(config.evaluate.benchmarks, name)
    folders = published_reward_folders(config)
    fact_types = tuple(one.name for one in extracted(config.run.types))
    if any(read_folder(folders[fact_type]).granularity == "response" for fact_type in fact_types):
        raise UserError(
            f"{benchmark.title} marks parts of responses: train reward models with rewards.kind other than coarse."
        )
    images = ImageFolder(name, settings.images).find_all(response.image for response in benchmark.responses)
    texts = [[one.id, one.prompt, one.text] for one in benchmark.responses]
    stage = stages.reward_benchmark(config, name, texts, published_versions(config), images)
    return JudgedTask(benchmark, settings, stage, images, fact_types)


def measure_rewards(config: Config, task: JudgedTask) -> dict[str, Any]:
    """Have the reward models judge, measure them, and print the metrics.

    Returns:
        What ``benchmarks.json`` holds of the benchmark.
    """
    from fgaif_ray.evaluation.benchmarks.metrics import table

    judge_responses(config, task)
    scales, measured = task.benchmark.measure(read_verdicts(task), config.run.seed)
    for line in table(task.benchmark.title, scales, {MODEL: measured}, []):
        say(line)
    return {
        "title": task.benchmark.title,
        "models": {MODEL: measured},
        "comparisons": [],
        "source": "run",
        "settings": task.benchmark.settings | task.config.model_dump(exclude={"path", "images"}),
        "judge": None,
    }


def show_pending(task: JudgedTask) -> None:
    """Print how many responses are to be judged."""
    total = len(task.benchmark.responses)
    say(f"benchmark: {task.benchmark.title}: {total - len(judged_before(task))} of {total} responses are to be judged.")


def judged_before(task: JudgedTask) -> set[str]:
    """Ids of the responses that an earlier attempt has judged."""
    folder = task.stage.readable_folder
    return set() if folder is None else {row["id"] for row in storage.read_rows(folder, ["id"])}


@storage.writes_run("benchmark")
def judge_responses(config: Config, task: JudgedTask) -> None:
    """Have the reward models judge what they have not judged yet, and publish it."""
    if task.stage.is_complete():
        return
    task.stage.begin(overwrite=config.run.overwrite)
    known = judged_before(task)
    pending = [response for response in task.benchmark.responses if response.id not in known]
    left_out = 0
    if pending:
        model = _load(config)
        with Progress("judge", len(known) + len(pending), "responses", initial=len(known)) as progress:
            for start in range(0, len(pending), config.evaluate.batch_size):
                block = pending[start : start + config.evaluate.batch_size]
                rows = _judge(config, task, model, block)
                left_out += len(block) - len({row["id"] for row in rows})
                if rows:
                    storage.write_part(task.stage.partial, rows, VERDICTS_SCHEMA)
                progress.advance(len(block))
    if left_out:
        say(f"benchmark: {left_out} responses of {task.benchmark.title} are left out (unreadable images, or too long).")
    task.stage.publish({"rows": len(known) + len(pending) - left_out})


def read_verdicts(task: JudgedTask) -> Verdicts:
    """Read the published verdicts."""
    found: dict[str, dict[str, Any]] = {}
    for row in storage.read_rows(task.stage.folder):
        probabilities = np.array(row["probabilities"], np.float32).reshape(-1, 3)
        found.setdefault(row["id"], {})[row["fact_type"]] = probabilities
    return found


def _load(config: Config) -> "RewardModel":
    import torch

    from fgaif_ray.rewards.model_files import load_reward_model
    from fgaif_ray.vlm.backbone import load_backbone

    rewards = config.rewards
    backbone = load_backbone(rewards.backbone, rewards.dtype, rewards.quantisation, config.data.chat_template_kwargs)
    if torch.cuda.is_available():
        backbone.move_to("cuda")
    return load_reward_model(backbone, stages.reward_folders(config), temperature_scaling=rewards.temperature_scaling)


def _judge(
    config: Config, task: JudgedTask, model: "RewardModel", responses: Sequence[MarkedResponse]
) -> list[dict[str, Any]]:
    """Rows of verdicts on a block; responses that cannot be read have none."""
    from fgaif_ray.rewards.encoding import ScoringItem

    opened = open_images((task.images[one.image] for one in responses), config.data.pixel_budget)
    encoded, ids = [], []
    for one in responses:
        image = opened[task.images[one.image]]
        if isinstance(image, UserError):
            continue
        try:
            encoded.append(model.encode(ScoringItem([image], one.prompt, one.segments)))
        except ValueError:  # longer than the backbone's context
            continue
        ids.append(one.id)
    by_type = model.judge_encoded(task.fact_types, encoded).probabilities
    return [
        {"id": id_, "fact_type": fact_type, "probabilities": probabilities.tolist()}
        for fact_type, of_type in by_type.items()
        for id_, probabilities in zip(ids, of_type, strict=True)
    ]
