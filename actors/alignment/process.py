"""What every learner process does, whatever it learns from: its log, its checkpoints, and the published adapter."""

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Final, Generic

import ray.train
import torch
from ray.train import Checkpoint

from actors.alignment import metrics as exported
from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.rl.checkpoint import LearnerState, UpdaterType
from fgaif_ray.rl.run_log import RunLog
from fgaif_ray.rl.trackers import open_trackers
from fgaif_ray.vlm.group import LearnerGroup

logger = logging.getLogger(__name__)

LAST_FOLDER: Final = "last"
"""Folder of the last policy in ``policy/``, where another one is published as the best."""


class LearnerProcess(Generic[UpdaterType]):
    """One of the processes that train a policy; `step` is the number of updates that the policy has gone through.

    Rank 0 writes checkpoints and logs; the other ranks wait for it where it matters.
    """

    def __init__(
        self, config: Config, folder: str, group: LearnerGroup, state: LearnerState[UpdaterType], types: tuple[str, ...]
    ) -> None:
        """Goes on from Ray Train's checkpoint, if there is one, and opens the log.

        Args:
            config: the configuration.
            folder: the stage's partial folder, for adapters and logs.
            group: the learner processes.
            state: all that changes.
            types: fact types that the log shows.

        Raises:
            UserError: on every rank, where a tracker cannot be started.
        """
        self._config, self._align, self._folder, self._group, self._state = config, config.align, folder, group, state
        self.step = self._saved_step = self._restore()
        self._log = self._open_log(types)
        self._timings: dict[str, float] = {}

    def record_stop(self, reason: str) -> None:
        """Export why the run ended before its last step."""
        if self._group.rank == 0:
            exported.record_stop(reason)

    def close(self) -> None:
        """Release threads and files."""
        if self._log is not None:
            self._log.close()

    def _open_log(self, types: tuple[str, ...]) -> RunLog | None:
        """The log, on rank 0.

        Raises:
            UserError: on every rank, where a tracker cannot be started.
        """
        log, problem = None, None
        if self._group.rank == 0:
            try:
                settings = self._align.model_dump(mode="json", exclude={"tracking"})
                trackers = open_trackers(self._align.tracking, self._folder, settings)
                first = self.step + 1 if self.step else 0  # the evaluation before the first step is made again
                log = RunLog(self._folder, first, types, trackers)
            except UserError as error:
                problem = error
        if int(self._group.sum(torch.tensor(int(problem is not None)))):
            raise problem or UserError("A tracker of align.tracking cannot be started: see the first worker's log.")
        return log

    def _restore(self) -> int:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return 0
        with checkpoint.as_directory() as folder:
            return self._state.load(folder)

    def _save_if_due(self) -> None:
        """Write a checkpoint where the step asks for one, or a machine is about to be taken away."""
        if self.step % self._align.checkpoint_every == 0 or self.step == self._align.steps:
            self._checkpoint()
        else:
            self._heed_notice()

    def _heed_notice(self) -> None:
        """Write a checkpoint if a machine of the group is about to be taken away; every rank calls it equally often."""
        notice = ray.train.get_preemption_info()
        if notice is not None and self._saved_step != self.step:
            logger.warning("a node will be taken away: checkpoint of step %d", self.step)
            self._checkpoint()

    def _checkpoint(self) -> None:
        with tempfile.TemporaryDirectory(prefix="fgaif-checkpoint-") as folder:
            checkpoint = None
            if self._group.rank == 0:
                self._state.save(folder, self.step)
                checkpoint = Checkpoint.from_directory(folder)
            ray.train.report({"step": self.step}, checkpoint=checkpoint)
        self._saved_step = self.step
        if self._log is not None:
            self._log.sync()

    def _export(self) -> None:
        """Put the policy's adapter at the top of the stage folder, or the best one with the last beside it."""
        best = self._state.best
        if best is None:
            self._save_adapter(self._folder)
            return
        self._save_adapter(storage.join(self._folder, LAST_FOLDER))
        with best.kept.restored() if best.step is not None else nullcontext():
            self._save_adapter(self._folder)

    def _save_adapter(self, target: str) -> None:
        with tempfile.TemporaryDirectory(prefix="fgaif-policy-") as folder:
            self._state.model.save_policy(folder)
            for path in sorted(Path(folder).iterdir()):
                storage.write_bytes(storage.join(target, path.name), path.read_bytes())

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._timings[phase] = time.monotonic() - started
