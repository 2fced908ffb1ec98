"""Progress of a long stage: a bar on a terminal, plain lines elsewhere, both with rate and time left."""

import sys
import time
from collections.abc import Iterable
from itertools import islice
from types import TracebackType
from typing import Final, Self

from tqdm import tqdm

REJECTED_SHOWN: Final = 10


def say(message: str) -> None:
    """Print one line for the person who runs the job, without tearing a progress bar."""
    tqdm.write(message, file=sys.stdout)
    sys.stdout.flush()


_said: set[str] = set()


def say_once(message: str) -> None:
    """Print a line, unless this process has printed the same one before: several stages look at the same data."""
    if message not in _said:
        _said.add(message)
        say(message)


def say_rejected(job: str, rows: Iterable[tuple[str, str]], count: int, folder: str) -> None:
    """List what a stage has rejected: the first rows with their reasons, then where the rest is.

    Args:
        job: name of the job.
        rows: image and reason of each; no more are read than are shown.
        count: all of them.
        folder: that holds them.
    """
    if not count:
        return
    say(f"{job}: rejected:")
    for image, reason in islice(rows, REJECTED_SHOWN):
        say(f"  {image}: {reason}")
    if count > REJECTED_SHOWN:
        say(f"  and {count - REJECTED_SHOWN} more; all are in {folder}.")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"


class Progress:
    """Progress of a long stage, in units of work.

    Args:
        name: what is being done, e.g. ``"label"``.
        total: number of units, or None when unknown.
        unit: plural name of a unit, e.g. ``"rows"``.
        initial: units that an earlier, interrupted run had already done (they count as done, not into the rate).
        interval: seconds between two lines when the output is not a terminal.
    """

    def __init__(
        self, name: str, total: int | None, unit: str = "rows", *, initial: int = 0, interval: float = 5.0
    ) -> None:
        self._name, self._total, self._unit, self._interval = name, total, unit, interval
        self._stream = sys.stdout
        self._done, self._initial = initial, initial
        self._started = self._last_line = time.monotonic()
        self._last_printed: int | None = None
        self._note = ""
        self._bar = (
            tqdm(total=total, initial=initial, desc=name, unit=f" {unit}", file=self._stream, leave=True)
            if self._stream.isatty()
            else None
        )

    def advance(self, count: int = 1, note: str = "") -> None:
        """Add ``count`` finished units; ``note`` is shown behind the numbers (e.g. a loss)."""
        self._done += count
        self._note = note or self._note
        if self._bar is not None:
            self._bar.update(count)
            if note:
                self._bar.set_postfix_str(note)
        elif time.monotonic() - self._last_line >= self._interval:
            self._print_line()

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        self._last_printed = self._done
        elapsed = self._last_line - self._started
        rate = (self._done - self._initial) / elapsed if elapsed > 0 else 0.0
        text = f"{self._name}: {self._done}"
        if self._total is not None:
            text += f"/{self._total}"
        text += f" {self._unit}, {rate:.1f}/s, {_clock(elapsed)} elapsed"
        if self._total is not None and rate > 0 and self._done < self._total:
            text += f", {_clock((self._total - self._done) / rate)} left"
        if self._note:
            text += f" | {self._note}"
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Finish the bar, or print the last line."""
        if self._bar is not None:
            self._bar.close()
        elif self._last_printed != self._done:
            self._print_line()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
