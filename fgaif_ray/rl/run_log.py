"""The log of a PPO run: ``metrics.jsonl``, ``samples.jsonl``, TensorBoard event files, and other trackers."""

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch.utils.tensorboard import SummaryWriter

from fgaif_ray import storage
from fgaif_ray.rl.sample_text import sample_markdown
from fgaif_ray.rl.trackers import Tracker
from fgaif_ray.rl.trajectories import Trajectory

METRICS_FILE: Final = "metrics.jsonl"
SAMPLES_FILE: Final = "samples.jsonl"
TENSORBOARD_FOLDER: Final = "tensorboard"


class RunLog:
    """The log of a run in a local folder or URI; a run that resumes from a step drops later lines."""

    def __init__(self, folder: str, next_step: int, types: Sequence[str], trackers: Sequence[Tracker] = ()) -> None:
        """Open the log.

        Args:
            folder: where the files are or will be.
            next_step: first step that will be logged (steps count from 1); lines of this and later steps are dropped.
            trackers: get the metrics too, and are closed with the log.
            types: the fact types of verdicts and rewards, in the order of the trajectories' arrays.
        """
        self._folder, self._trackers, self._types = folder, trackers, types
        self._lines: dict[str, list[str]] = {}
        for name in (METRICS_FILE, SAMPLES_FILE):
            rows = read_lines(storage.join(folder, name))
            self._lines[name] = []
            if rows:
                self._append(name, [row for row in rows if row["step"] < next_step])
        self._remote = not storage.is_local(folder)
        events = storage.join(folder, TENSORBOARD_FOLDER)
        self._events = tempfile.mkdtemp(prefix="fgaif-tensorboard-") if self._remote else events.removeprefix("file://")
        self._writer = SummaryWriter(self._events, purge_step=next_step)

    def write_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line, and one point per metric; values that are not finite are written as null."""
        line = {"step": step} | {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._append(METRICS_FILE, [line])
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
        for tracker in self._trackers:
            tracker.log(step, {name: value for name, value in metrics.items() if math.isfinite(value)})

    def write_samples(self, step: int, trajectories: Sequence[Trajectory]) -> None:
        """Write responses with their segments, verdicts and rewards; TensorBoard shows them in colours."""
        samples = [_sample(step, trajectory, self._types) for trajectory in trajectories]
        self._append(SAMPLES_FILE, samples)
        self._writer.add_text("samples", sample_markdown(samples), step)

    def sync(self) -> None:
        """Bring the event files to remote storage; local ones are there already."""
        if self._remote:
            storage.upload_folder(self._events, storage.join(self._folder, TENSORBOARD_FOLDER))

    def close(self) -> None:
        """Close the event file and the trackers."""
        self._writer.close()
        for tracker in self._trackers:
            tracker.close()
        self.sync()

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self._lines[name] += [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
        text = "".join(f"{line}\n" for line in self._lines[name])
        storage.write_bytes(storage.join(self._folder, name), text.encode())


def read_lines(uri: str) -> list[dict[str, Any]]:
    """Read the rows of a JSON-lines file; none if there is no file."""
    if not storage.exists(uri):
        return []
    # Not splitlines: a response may hold one of the other characters that Unicode counts as line ends.
    return [json.loads(line) for line in storage.read_bytes(uri).decode().split("\n") if line]


def _sample(step: int, trajectory: Trajectory, types: Sequence[str]) -> dict[str, Any]:
    probabilities, rewards = trajectory.class_probabilities or (), trajectory.per_type_rewards or ()
    facts = trajectory.fact_counts or [None] * len(probabilities)
    segments = [
        {
            "start": start,
            "end": end,
            "text": trajectory.response[start:end],
            "token_end": token_end,
            "probabilities": dict(zip(types, map(list, classes), strict=True)),
            "rewards": dict(zip(types, earned, strict=True)),
            **({} if counts is None else {"facts": dict(zip(types, map(list, counts), strict=True))}),
        }
        for (start, end), token_end, classes, earned, counts in zip(
            trajectory.segment_spans, trajectory.token_ends, probabilities, rewards, facts, strict=False
        )
    ]
    return {
        "step": step,
        "sample_id": trajectory.sample_id,
        "image": trajectory.image,
        **({"more_images": list(trajectory.more_images)} if trajectory.more_images else {}),
        "prompt": trajectory.prompt,
        "response": trajectory.response,
        "token_ids": list(trajectory.token_ids),
        "finish_reason": trajectory.finish_reason,
        "policy_version": trajectory.policy_version,
        "reward": sum(trajectory.token_rewards) if trajectory.token_rewards is not None else None,
        "reward_failure": trajectory.reward_failure,
        "segments": segments,
    }
