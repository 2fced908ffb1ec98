"""Times of the steps of `jobs.align`: PPO, PPO that samples ahead, RLOO; and the share that a new policy's sync takes.

The job is the real one: Ray Train learners, rollout workers, the reward service with reward models of random adapters,
with the configuration's batches and placement. Learning rates are so low that responses keep their length. The
three kinds of runs take turns and ask the same service; RLOO has several responses to each image and prompt, and no
critic. Times are those of ``metrics.jsonl``, of the
slowest learner; they begin with the wait for a batch and end when the new policy is published. Steps that warm up, and
the last one, which samples nothing ahead, are left out.

* ``sync_share``: ``timing/sync`` over ``timing/step`` of the sequential runs: writing the adapter, the other learners'
  wait for it, and every rollout worker's loading it.
* ``overlap_over_sequential``: the median step overlapped over the median step sequential.
* ``rloo_over_ppo``: the median step of RLOO over the median step of PPO, both sequential, with as many responses.
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
SAMPLES: Final = 4
"""Responses to each image and prompt of RLOO."""
WAYS: Final = {
    "sequential": ("align.algorithm=ppo", "align.samples_per_prompt=1", "align.rollout.max_staleness=0"),
    "overlapped": ("align.algorithm=ppo", "align.samples_per_prompt=1", "align.rollout.max_staleness=1"),
    "rloo": ("align.algorithm=rloo", f"align.samples_per_prompt={SAMPLES}", "align.rollout.max_staleness=0"),
}
Step = dict[str, float]
"""Seconds of each phase, and of the step."""


@dataclass(frozen=True, slots=True)
class Loop:
    """The steps that count, of all runs."""

    steps: dict[str, list[Step]]
    """By the names of ``WAYS``."""

    @property
    def sync_share(self) -> float:
        """Share of the sequential steps' time."""
        steps = self.steps["sequential"]
        return sum(step["sync"] for step in steps) / sum(step["step"] for step in steps)

    def over_sequential(self, way: str) -> float:
        """Ratio of the median steps of a way and of PPO in sequence."""
        return _median(self.steps[way], "step") / _median(self.steps["sequential"], "step")

    def describe(self) -> str:
        """Lines for people: median seconds of each phase."""
        lines = []
        for name, steps in self.steps.items():
            phases = ", ".join(f"{phase} {_median(steps, phase):.3f}" for phase in PHASES)
            seconds = [step["step"] for step in steps]
            lines.append(
                f"loop, {name}: step {statistics.median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f}, "
                f"{len(steps)} steps): {phases}"
            )
        return "\n".join(lines)


def measure(config: Config, steps: int, repeats: int, warm_up: int = 2) -> Loop:
    """Run all ways in turn.

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
    found: dict[str, list[Step]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        rewards = Path(folder) / "rewards"
        models = make_models(config, rewards)
        with connect(config):
            reward_service.deploy(config, models)
            try:
                for repeat in range(repeats):
                    for way, settings in WAYS.items():
                        run = Path(folder) / f"{repeat}-{way}"
                        run.mkdir()
                        (run / "rewards").symlink_to(rewards)
                        own = [f"run.dir={run}", f"data.path={folder}"]
                        found[way] += _steps(change_config(config, [*shared, *own, *settings]))[warm_up:-1]
            finally:
                reward_service.shutdown(config.serve.app_name)
    return Loop(found)


def _steps(config: Config) -> list[Step]:
    """Runs PPO and reads what its steps took."""
    align.run(config)
    rows = read_lines(storage.join(config.run.dir, stages.POLICY, METRICS_FILE))
    return [{phase: row[f"timing/{phase}"] for phase in (*PHASES, "step")} for row in rows]


def _median(steps: list[Step], phase: str) -> float:
    return statistics.median(step[phase] for step in steps)
