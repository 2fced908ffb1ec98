"""What ended workers of Ray Train, told while it starts them again: Ray itself says it when all tries are used up."""

from collections.abc import Callable
from typing import Any, Final

from ray.train import UserCallback

from actors.cluster.lost_nodes import is_loss
from fgaif_ray import storage

FILE: Final = "failures.json"
LONGEST_REASON: Final = 300
"""Characters of an exception that are told."""


class FailureNotes(UserCallback):
    """A callback of Ray Train's controller that adds each failure to a file, a JSON list of reasons.

    Example: ``RunConfig(callbacks=noting_failures(folder))``, and meanwhile ``FailureNews(folder, say).look("...")``.
    """

    def __init__(self, folder: str) -> None:
        """Write below a folder, which may not be there yet; a path or URI."""
        self._folder = folder

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Note what ended the workers: the first error that is not the loss of another one."""
        rank, error = min(worker_exceptions.items(), key=lambda item: (is_loss(item[1]), item[0]))
        reasons = [*read_failures(self._folder), f"worker {rank}: {describe(error)}"]
        storage.write_json(storage.join(self._folder, FILE), reasons)


def noting_failures(folder: str) -> list[Any]:
    """Return the callbacks of a ``RunConfig``, whose annotation names those of Ray Tune."""
    return [FailureNotes(folder)]


def read_failures(folder: str) -> list[str]:
    """Read why workers have failed, oldest first."""
    uri = storage.join(folder, FILE)
    reasons: list[str] = storage.read_json(uri) if storage.exists(uri) else []
    return reasons


def describe(error: BaseException) -> str:
    """Name an exception and what it says, on one line."""
    cause = getattr(error, "_base_exc", error)  # Ray Train wraps those of its users
    text = " ".join(str(cause).split())
    return f"{type(cause).__name__}: {text}"[:LONGEST_REASON].rstrip(": ")


class FailureNews:
    """The failures that have not been told yet."""

    def __init__(self, folder: str, tell: Callable[[str], None]) -> None:
        """Take those that are there for told.

        Args:
            folder: of the notes.
            tell: takes a line.
        """
        self._folder, self._tell = folder, tell
        self._told = len(read_failures(folder))

    def look(self, next_try: str) -> None:
        """Tell of new failures, and what happens next."""
        for reason in read_failures(self._folder)[self._told :]:
            self._told += 1
            self._tell(f"{reason}; {next_try}")
