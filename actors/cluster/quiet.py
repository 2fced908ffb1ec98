"""Ray's harmless lines, kept off a person's terminal. the logs of Ray's session have them."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from ray.data import DataContext

CHATTY_LOGGERS: Final = ("ray.data", "ray.serve", "ray.train", "ray.tune")
"""They tell at level INFO what the jobs say in their own words."""
HINTING_LOGGER: Final = "ray.data._internal.progress"
"""It warns that progress bars are off, which is meant: jobs have their own."""
HARMLESS: Final = (
    # Ray Data hands every actor pool its arguments through the object store, where they stay as long as the pool.
    "constructor arguments in the object store and max_restarts > 0",
    # Jobs need no metrics agent: a Ray that is started here has none.
    "metrics exporter agent",
    "Not sending reply because executor stopped",
)
"""Parts of lines that Ray's C++ core writes straight to standard error, where no logger can be told."""
END_S: Final = 2.0


def quiet_loggers() -> None:
    """Leave warnings and errors of Ray's libraries, without their progress bars."""
    for name in CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger(HINTING_LOGGER).setLevel(logging.ERROR)


def quiet_progress() -> None:
    """No progress bars of Ray Data: jobs show their own."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


@contextmanager
def without_lines(parts: Sequence[str] = HARMLESS) -> Iterator[None]:
    """Take lines with one of these parts out of the process's standard error, whoever writes them.

    A process of its own filters: what this one writes as it dies still arrives.
    """
    grep = shutil.which("grep")
    if grep is None:
        yield
        return
    words = [word for part in parts for word in ("-e", part)]
    sys.stderr.flush()
    terminal = os.dup(2)
    # A session of its own: Ctrl-C is for the job, whose last words the filter has to pass on.
    with subprocess.Popen(
        [grep, "--line-buffered", "-v", "-F", *words], stdin=subprocess.PIPE, stdout=terminal, start_new_session=True
    ) as process:
        assert process.stdin is not None
        os.dup2(process.stdin.fileno(), 2)
        process.stdin.close()
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:  # a process that Ray started has standard error from here
                process.kill()
