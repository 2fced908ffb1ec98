"""Python's garbage collector in processes that make many small objects for a long time."""

import gc
from typing import Final

THRESHOLDS: Final = (20_000, 20, 20)
"""Of the three generations; with the 700 of Python 3.11 the collector runs after every dozen calls."""


def spare_the_loaded() -> None:
    """Keep the collector from going over all that a process has loaded, again and again.

    Imported packages are half a million objects that stay. A process that holds thousands of calls open makes objects
    quickly enough to have all of them looked at every few seconds, and an event loop waits meanwhile. Cycles made
    from now on are still found. Holds for the whole process: for one that does a single job.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
