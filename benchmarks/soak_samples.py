"""What processes hold over time: memory, descriptors, threads and disk, and whether any of it grows."""

import json
import os
import re
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
import psutil

from fgaif_ray.statistics.paired import student_t_quantile
from fgaif_ray.tables import table_lines

MIB: Final = 1 << 20
HOUR_S: Final = 3600.0
WINDOWS: Final = 12
"""Of equal length, after the warm-up: a trend is a line through their medians."""
FEWEST_WINDOWS: Final = 6
CONFIDENCE: Final = 0.95
ALLOWED_SHARE: Final = 0.01
"""Of the level, per hour: what grows by less is flat."""
ALLOWED: Final = {"memory": 10.0, "descriptors": 2.0, "threads": 2.0, "disk": 10.0}
"""The same as a number, where it is more; memory and disk in MiB."""
LARGEST_ROLES: Final = 5


@dataclass(frozen=True, slots=True)
class Sample:
    """A process and all that it has started, at a time."""

    at_s: float
    """Since the load began; negative while it starts."""
    memory: float
    """MiB; pages that several processes share are divided among them (PSS)."""
    descriptors: float
    threads: float
    disk: float
    """MiB below the folder of logs and temporary files."""
    processes: int
    memory_by_role: dict[str, float]


@dataclass(frozen=True, slots=True)
class Trend:
    """How a measure changed after the warm-up."""

    measure: str
    level: float
    """The median of all windows."""
    per_hour: float
    low: float
    """Of the 95 % interval of the growth per hour."""
    high: float

    @property
    def is_flat(self) -> bool:
        """Whether it grows by no more than what is allowed, or by nothing that can be told from chance."""
        return self.low <= 0 or self.per_hour <= max(ALLOWED[self.measure], ALLOWED_SHARE * self.level)

    def figures(self) -> dict[str, object]:
        """What goes into the last line."""
        interval = [round(value, 3) for value in (self.low, self.high)]
        return {
            "flat": self.is_flat,
            "level": round(self.level, 2),
            "per_hour": round(self.per_hour, 3),
            "interval": interval,
        }


def trend(samples: Sequence[Sample], measure: str, warm_up_s: float) -> Trend:
    """A line through the medians of ``WINDOWS`` windows, and its slope's interval by Student's t.

    Raises:
        ValueError: fewer than ``FEWEST_WINDOWS`` windows have a sample.
    """
    kept = [sample for sample in samples if sample.at_s >= warm_up_s]
    last = max((sample.at_s for sample in kept), default=warm_up_s)
    width = (last - warm_up_s) / WINDOWS or 1.0
    windows: list[list[float]] = [[] for _ in range(WINDOWS)]
    for sample in kept:
        windows[min(int((sample.at_s - warm_up_s) / width), WINDOWS - 1)].append(getattr(sample, measure))
    full = [number for number, window in enumerate(windows) if window]
    if len(full) < FEWEST_WINDOWS:
        raise ValueError(f"too few samples after {warm_up_s:.0f} s of warm-up: more minutes are needed")
    medians = np.array([statistics.median(windows[number]) for number in full])
    hours = (np.array(full) + 0.5) * width / HOUR_S
    centred = hours - hours.mean()
    slope = float((centred * medians).sum() / (centred**2).sum())
    left = medians - medians.mean() - slope * centred
    error = float(np.sqrt((left**2).sum() / (len(full) - 2) / (centred**2).sum()))
    margin = student_t_quantile((1 + CONFIDENCE) / 2, len(full) - 2) * error
    return Trend(measure, float(np.median(medians)), slope, slope - margin, slope + margin)


def growth_by_role(samples: Sequence[Sample], warm_up_s: float) -> list[tuple[str, float, float]]:
    """Role, MiB in the first and in the last third after the warm-up; what grew most comes first."""
    kept = [sample.memory_by_role for sample in samples if sample.at_s >= warm_up_s]
    third = max(1, len(kept) // 3)

    def middle(part: Sequence[Mapping[str, float]], role: str) -> float:
        return statistics.median(one.get(role, 0.0) for one in part)

    roles = sorted({role for one in kept for role in one})
    rows = [(role, middle(kept[:third], role), middle(kept[-third:], role)) for role in roles]
    return sorted(rows, key=lambda row: row[1] - row[2])


def describe(title: str, samples: Sequence[Sample], trends: Sequence[Trend], warm_up_s: float) -> list[str]:
    """Tables for people."""
    rows = [("", "level", "per hour", "95 % interval", "flat")]
    for one in trends:
        interval = f"[{one.low:+.2f}, {one.high:+.2f}]"
        rows.append((one.measure, f"{one.level:.1f}", f"{one.per_hour:+.2f}", interval, "yes" if one.is_flat else "NO"))
    minutes = (samples[-1].at_s - warm_up_s) / 60
    head = f"{title}: {minutes:.1f} minutes after {warm_up_s:.0f} s of warm-up, {samples[-1].processes} processes"
    lines = [head, *table_lines(rows, right={1, 2, 3})]
    for role, first, last in growth_by_role(samples, warm_up_s)[:LARGEST_ROLES]:
        lines.append(f"  {role}: {first:.1f} to {last:.1f} MiB")
    return lines


class Sampler:
    """Looks at a process, all that it has started, and a folder every few seconds while the block runs.

    Every sample goes into a file at once, so that a run that is killed leaves what it has seen.

    Example: ``with Sampler(os.getpid(), folder, log, 5.0) as sampler: sampler.begin(); work()``
    """

    def __init__(self, pid: int, folder: Path, log: Path, interval_s: float) -> None:
        """Prepare.

        Args:
            pid: the process.
            folder: of logs and temporary files.
            log: file that samples are appended to, a line of JSON each.
            interval_s: seconds from one sample to the next.
        """
        self._process = psutil.Process(pid)
        self._folder, self._log, self._interval_s = folder, log, interval_s
        self._began = float("inf")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="sampler")
        self.samples: list[Sample] = []

    def begin(self) -> None:
        """Note that the load begins now."""
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        with self._log.open("a", encoding="utf-8") as log:
            while not self._done.wait(self._interval_s):
                if self._began == float("inf"):
                    continue
                with suppress(psutil.NoSuchProcess):
                    sample = take_sample(self._process, self._folder, time.monotonic() - self._began)
                    self.samples.append(sample)
                    log.write(json.dumps(asdict(sample)) + "\n")
                    log.flush()


def read_samples(log: Path) -> list[Sample]:
    """The samples that a file holds; none where there is no file."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [Sample(**json.loads(line)) for line in lines if line.endswith("}")]  # the last one may be cut


def take_sample(process: psutil.Process, folder: Path, at_s: float) -> Sample:
    """Look once.

    Raises:
        psutil.NoSuchProcess: the process has ended.
    """
    totals = {"memory": 0.0, "descriptors": 0.0, "threads": 0.0}
    by_role: dict[str, float] = {}
    count = 0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            memory = one.memory_full_info().pss / MIB
            found = {"memory": memory, "descriptors": one.num_fds(), "threads": one.num_threads()}
            totals = {name: totals[name] + value for name, value in found.items()}
            role = role_of(one.cmdline())
            by_role[role] = by_role.get(role, 0.0) + memory
            count += 1
    return Sample(at_s, **totals, disk=disk_mib(folder), processes=count, memory_by_role=by_role)


def role_of(command: Sequence[str]) -> str:
    """A short name for processes of a kind, from a command line, e.g. ``ServeReplica:rewards:RewardGateway``."""
    if not command:
        return "?"
    if command[0].startswith("ray::"):
        title = re.sub(r"^ray::\S*(?=ServeReplica:)", "", command[0].split()[0])  # less the replica's own number
        return re.sub(r"\.\w+$", "", title)  # and less the method that it is at
    first = Path(command[0]).name
    if first.startswith("python"):
        words = [Path(word).name for word in command[1:] if not word.startswith("-")]
        return words[0] if words else first
    return first


def disk_mib(folder: Path) -> float:
    """What the files below a folder take on the disk."""
    taken = 0
    for at, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                taken += os.lstat(os.path.join(at, name)).st_blocks * 512
    return taken / MIB
