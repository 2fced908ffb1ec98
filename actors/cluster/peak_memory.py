"""Peak memory of a run on this machine."""

import threading
from types import TracebackType
from typing import Self

import psutil

GIB = 1 << 30
INTERVAL_S = 2.0


class PeakMemory:
    """A watch of the proportional memory of this process and all its descendants while the block runs.

    Shared pages are counted once over the processes that share them (PSS), as summing resident sizes would count the
    object store and the libraries many times.
    """

    def __init__(self) -> None:
        self._peak = self._lap = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="peak-memory")

    @property
    def peak_gib(self) -> float:
        """The highest value so far, GiB."""
        return self._peak / GIB

    def take_lap_gib(self) -> float:
        """Return the highest value since the last call, GiB; 0 if none was measured since."""
        lap, self._lap = self._lap, 0
        return lap / GIB

    def _watch(self) -> None:
        this = psutil.Process()
        while True:
            total = 0
            for process in [this, *this.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            self._peak, self._lap = max(self._peak, total), max(self._lap, total)
            if self._stop.wait(INTERVAL_S):
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
