"""Times of the steps of `jobs.align`, sequential and overlapped, and the share of them that a new policy's sync takes.

The job is the real one: Ray Train learners, rollout workers, the reward service with reward models of random adapters,
with the configuration's batches and placement. Learning rates are so low that responses keep their length. Runs with
`rollout.max_staleness` 0 and 1 take turns; both ask the same service. Times are those of ``metrics.jsonl``, of the
slowest learner; they begin with the wait for a batch and end when the new policy is published. Steps that warm up, and
the last one, which samples nothing ahead, are left out.

* ``sync_share``: ``timing/sync`` over ``timing/step`` of the sequential runs: writing the adapter, the other learners'
  wait for it, and every rollout worker's loading it.
* ``overlap_over_sequential``: the median step overlapped over the median step sequential.
"""

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from actors.cluster.connect import connect
from benchmarks.rewards import make_models
from fgaif_ray import storage
from fgaif_ray.config import Config, change_config
from fgaif_ray.rl.run_log import METRICS_FILE, read_lines
from fgaif_ray.storage import stages
from jobs import align

PHASES: Final = ("wait", "rollout", "reward", "reference", "update", "sync")
Step = dict[str, float]
"""Seconds of each phase, and of the step."""


@dataclass(frozen=True, slots=True)
class Loop:
    """The steps that count, of all runs."""

    sequential: list[Step]
    overlapped: list[Step]

    @property
    def sync_share(self) -> float:
        """Share of the sequential steps' time."""
        return sum(step["sync"] for step in self.sequential) / sum(step["step"] for step in self.sequential)

    @property
    def overlap_over_sequential(self) -> float:
        """Ratio of the median steps."""
        return _median(self.overlapped, "step") / _median(self.sequential, "step")

    def describe(self) -> str:
        """Lines for people: median seconds of each phase."""
        lines = []
        for name, steps in (("sequential", self.sequential), ("overlapped", self.overlapped)):
            phases = ", ".join(f"{phase} {_median(steps, phase):.3f}" for phase in PHASES)
            seconds = [step["step"] for step in steps]
            lines.append(
                f"loop, {name}: step {statistics.median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f}, "
                f"{len(steps)} steps): {phases}"
            )
        return "\n".join(lines)


def measure(config: Config, steps: int, repeats: int, warm_up: int = 2) -> Loop:
    """Run both ways.

    Args:
        config: the run's; its data and rewards are replaced.
        steps: of each run.
        repeats: runs of each way.
        warm_up: first steps of each run that are left out.
    """
    from actors.rewards import service as reward_service

    size = config.align.rollout_batch_size
    shared = [
        "data.sample_images=1",
        f"data.align_images={steps * size}",
        "data.evaluate_images=1",
        f"align.steps={steps}",
        "align.critic_from_reward=null",
        "align.ppo.learning_rate=1.0e-9",
        "align.ppo.critic_learning_rate=1.0e-9",
        f"align.checkpoint_every={steps}",
    ]
    found: dict[int, list[Step]] = {0: [], 1: []}
    with tempfile.TemporaryDirectory() as folder:
        rewards = Path(folder) / "rewards"
        models = make_models(config, rewards)
        with connect(config):
            reward_service.deploy(config, models)
            try:
                for repeat in range(repeats):
                    for staleness in (0, 1):
                        run = Path(folder) / f"{repeat}-{staleness}"
                        run.mkdir()
                        (run / "rewards").symlink_to(rewards)
                        own = [f"run.dir={run}", f"data.path={folder}", f"align.rollout.max_staleness={staleness}"]
                        found[staleness] += _steps(change_config(config, [*shared, *own]))[warm_up:-1]
            finally:
                reward_service.shutdown(config.serve.app_name)
    return Loop(found[0], found[1])


def _steps(config: Config) -> list[Step]:
    """Runs PPO and reads what its steps took."""
    align.run(config)
    rows = read_lines(storage.join(config.run.dir, stages.POLICY, METRICS_FILE))
    return [{phase: row[f"timing/{phase}"] for phase in (*PHASES, "step")} for row in rows]


def _median(steps: list[Step], phase: str) -> float:
    return statistics.median(step[phase] for step in steps)
