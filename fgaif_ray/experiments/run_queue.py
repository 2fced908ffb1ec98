"""The runs of an experiment: what each takes from others, and the processes that do the rest.

    for each run:  adopt finished stages of other runs -> jobs.sample (truth as labels) -> jobs.pipeline, or jobs.report
                   where all stages are there -> jobs.reward_accuracy (where the truth is known) -> marker

A run is a run folder like any other, and its processes are those that a person would start: they skip what is there,
and go on where they were interrupted.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from fgaif_ray import storage
from fgaif_ray.config import Config, change_config, dump_config, recorded_config
from fgaif_ray.errors import UserError
from fgaif_ray.experiments.accuracy import accuracy_key, is_measured
from fgaif_ray.experiments.adopt import adopt, is_finished, mark_finished, other_folders
from fgaif_ray.experiments.metrics import REWARD_ACCURACY_FILE
from fgaif_ray.experiments.variants import Run
from fgaif_ray.progress import say
from fgaif_ray.report.summary import build_summary
from fgaif_ray.storage.planned_stages import planned_keys
from fgaif_ray.storage.stages import RESPONSES

if TYPE_CHECKING:
    from fgaif_ray.sources import ImageSets

LOG_FILE: Final = "experiment.log"
LINES_KEPT: Final = 25
"""Of what a run's processes wrote, for the page, should the run fail."""
POLL_S: Final = 1.0
STOP_S: Final = 90.0
"""How long an interrupted run may take to end by itself."""


@dataclass
class Process:
    """A job of a run in a process of its own; what it writes goes into the run's log, and here if wanted."""

    run: Run
    job: str
    process: "subprocess.Popen[str]" = field(repr=False)
    tail: deque[str]
    reader: threading.Thread = field(repr=False)

    @classmethod
    def start(cls, run: Run, job: str, config: Config, folder: Path, echo: bool) -> "Process":
        """Start ``python -m jobs.<job>`` with a configuration, which is written into a local folder."""
        file = folder / f"{run.name.replace('/', '-')}.yaml"
        file.write_text(dump_config(config), encoding="utf-8")
        log_path = _log_path(run)
        log_path.parent.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", f"jobs.{job}", "--config", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,  # Ctrl-C comes to it through ``stop`` alone, once
        )
        assert process.stdout is not None
        tail: deque[str] = deque(maxlen=LINES_KEPT)
        reader = threading.Thread(target=_read, args=(process.stdout, log_path, tail, echo), daemon=True)
        reader.start()
        return cls(run, job, process, tail, reader)

    def wait_output(self) -> str:
        """The last lines of a process that has ended."""
        self.reader.join(timeout=5.0)  # a grandchild may hold the pipe a little longer
        return "\n".join(self.tail)

    def stop(self) -> None:
        """Interrupt it; SIGTERM means to a job what Ctrl-C does, and is not ignored below nohup."""
        if self.process.poll() is None:
            self.process.terminate()

    def wait_stopped(self) -> None:
        """Wait for its end; a process that does not end is killed with all that it started."""
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _log_path(run: Run) -> Path:
    if storage.is_local(run.folder):
        return Path(run.folder.removeprefix("file://")) / LOG_FILE
    return Path("logs") / f"{run.name.replace('/', '-')}-{LOG_FILE}"


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _read(stream: IO[str], log_path: Path, tail: deque[str], echo: bool) -> None:
    with open(log_path, "a", encoding="utf-8") as log:
        for line in stream:
            log.write(line)
            log.flush()
            tail.append(line.rstrip("\n"))
            if echo:
                say(f"    {line.rstrip()}")


@dataclass
class RunQueue:
    """Runs that are to be done, ``parallel`` at a time, and how they ended.

    Example: ``RunQueue(runs, base, 2, scratch, on_end).work()``
    """

    runs: Sequence[Run]
    base: Config
    parallel: int
    scratch: Path
    """Local folder for the configurations of the runs."""
    on_end: Callable[[dict[str, str | None]], None]
    """Called after each run with what ``work`` returns in the end."""
    _ended: dict[str, str | None] = field(default_factory=dict)
    _sets: dict[str, "ImageSets"] = field(default_factory=dict)

    def work(self) -> dict[str, str | None]:
        """Do the runs; one that fails does not keep the others from going on.

        Returns:
            Name of the run -> None where it is done, else its last words.

        Raises:
            KeyboardInterrupt: the processes have been interrupted and have ended.
        """
        waiting: list[Run] = []
        for run in self.runs:
            if is_finished(run):
                self._ended[run.name] = None
                say(f"{run.name}: done before")
            else:
                waiting.append(run)
        self.on_end(self._ended)
        running: list[Process] = []
        try:
            while waiting or running:
                for process in [process for process in running if process.process.poll() is not None]:
                    running.remove(process)
                    follower = self._follow(process)
                    if follower is not None:
                        running.append(follower)
                while len(running) < self.parallel and (started := self._start_one(waiting, running)) is not None:
                    running.append(started)
                if running:
                    time.sleep(POLL_S)
        finally:
            for process in running:
                process.stop()
            for process in running:
                process.wait_stopped()
        return self._ended

    def _start_one(self, waiting: list[Run], running: Sequence[Process]) -> Process | None:
        """Start the first run that does not wait for a stage that another one is at."""
        for run in list(waiting):
            try:
                missing = adopt(run, other_folders(self.base), self._images(run))
            except Exception as error:  # whatever is wrong with this run, the others go on
                waiting.remove(run)
                self._end(run, _words(error))
                continue
            keys = planned_keys(run.config)
            if missing is not None and any(planned_keys(at.run.config)[missing] == keys[missing] for at in running):
                continue
            waiting.remove(run)
            job = "sample" if run.variant.truth_labels and missing == RESPONSES else "pipeline"
            if missing is None:  # for this neither Ray nor an engine has to start
                job = "report"
            say(f"== {run.name}: {'from ' + missing if missing is not None else 'all stages are there'}")
            return self._start(run, job)
        return None

    def _start(self, run: Run, job: str) -> Process:
        config = run.config
        if self.parallel > 1:  # on one cluster each run's reward service needs a name of its own
            config = change_config(config, [f"serve.app_name=rewards-{run.name.replace('/', '-')}"])
        return Process.start(run, job, config, self.scratch, echo=self.parallel == 1)

    def _images(self, run: Run) -> "ImageSets":
        from fgaif_ray.sources import prepare_images

        if run.name not in self._sets:
            self._sets[run.name] = prepare_images(run.config)
        return self._sets[run.name]

    def _follow(self, process: Process) -> Process | None:
        """What comes after a process that has ended."""
        run = process.run
        if process.process.returncode != 0:
            self._end(run, process.wait_output() or f"jobs.{process.job} ended with {process.process.returncode}")
            return None
        if process.job == "sample":
            try:
                adopt(run, other_folders(self.base), self._images(run))
            except Exception as error:
                self._end(run, _words(error))
                return None
            return self._start(run, "pipeline")
        if process.job == "report":
            storage.write_bytes(storage.join(run.folder, "config.yaml"), recorded_config(run.config).encode())
            build_summary(run.folder, run.config.run.type_names)
        known = process.job == "reward_accuracy" or run.config.data.source != "shapes"
        if not known and not self._adopt_accuracy(run):
            return self._start(run, "reward_accuracy")
        mark_finished(run)
        self._end(run, None)
        return None

    def _adopt_accuracy(self, run: Run) -> bool:
        """Whether the accuracy of these reward models is known, by this run or another one."""
        key = accuracy_key(run.config)
        if is_measured(run.folder, key):
            return True
        for folder in other_folders(self.base):
            if is_measured(folder, key):
                found = storage.read_json(storage.join(folder, REWARD_ACCURACY_FILE))
                storage.write_json(storage.join(run.folder, REWARD_ACCURACY_FILE), found)
                return True
        return False

    def _end(self, run: Run, error: str | None) -> None:
        self._ended[run.name] = error
        words = "done" if error is None else f"failed: {error.strip().splitlines()[-1] if error.strip() else ''}"
        say(f"== {run.name}: {words}")
        self.on_end(self._ended)
