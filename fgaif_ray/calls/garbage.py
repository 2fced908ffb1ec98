"""Settings of Python's garbage collector for processes that make many small objects for a long time."""

import gc
from typing import Final

THRESHOLDS: Final = (20_000, 20, 20)
"""Thresholds of the three generations. With the 700 of Python 3.11 the collector runs after every dozen calls."""


def spare_the_loaded() -> None:
    """Keep the collector from going repeatedly over everything that a process has loaded.

    Imported packages are half a million permanent objects. A process that holds thousands of calls open makes objects
    quickly enough to have all of them looked at every few seconds, and an event loop waits meanwhile. Cycles made
    from now on are still found. This holds for the whole process, so use it in one that does a single job.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
