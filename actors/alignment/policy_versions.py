"""The folders of policy adapters that a running PPO hands to its rollout workers."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from actors.alignment.rollout import PolicyVersion
from fgaif_ray import storage

if TYPE_CHECKING:
    from fgaif_ray.rl.policy import PolicyModel

ADAPTERS_FOLDER: Final = "adapters"
KEPT_VERSIONS: Final = 2
PROBE: Final = -1
"""Number of a version that is of no step."""


class PolicyVersions:
    """Versions under a stage folder, published whole; those that nobody samples from any more are removed.

    Example: ``PolicyVersions("runs/shapes/policy.partial", 0x9c1f03d2).write(model, 3)`` writes
    ``runs/shapes/policy.partial/adapters/v3-9c1f03d2``.
    """

    def __init__(self, folder: str, attempt: int) -> None:
        """Prepare without writing.

        Args:
            folder: the stage's partial folder.
            attempt: 31 bits of this process group's own: versions of an interrupted run may still be in the engines.
        """
        self._folder, self._attempt = folder, attempt

    def version(self, number: int) -> PolicyVersion:
        """Return the version of this number, written or not."""
        return PolicyVersion(number, storage.join(self._folder, ADAPTERS_FOLDER, f"v{number}-{self._attempt:08x}"))

    def write(self, model: "PolicyModel", number: int) -> None:
        """Write the model's current policy, and remove the version ``KEPT_VERSIONS`` before."""
        with _written_whole(self.version(number).folder) as local:
            model.save_policy(local)
        storage.remove_folder(self.version(number - KEPT_VERSIONS).folder)

    @contextmanager
    def probe(self, model: "PolicyModel", write: bool) -> Iterator[PolicyVersion]:
        """A version for the time of the block, to compare engine and learner with; it is of no step.

        Args:
            model: whose current policy it is.
            write: whether this process writes and removes it.
        """
        version = PolicyVersion(PROBE, storage.join(self._folder, ADAPTERS_FOLDER, f"probe-{self._attempt:08x}"))
        if write:
            with _written_whole(version.folder) as local:
                model.save_policy(local)
        yield version
        if write:
            storage.remove_folder(version.folder)

    def clear(self) -> None:
        """Remove the versions of all attempts."""
        storage.remove_folder(storage.join(self._folder, ADAPTERS_FOLDER))


@contextmanager
def _written_whole(folder: str) -> Iterator[str]:
    """A local folder to fill, which becomes ``folder`` by a rename, or by an upload where it is not local."""
    if not storage.is_local(folder):
        with tempfile.TemporaryDirectory(prefix="fgaif-adapter-") as local:
            yield local
            storage.upload_folder(local, folder)
        return
    target = Path(folder.removeprefix("file://"))
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = tempfile.mkdtemp(prefix=".", dir=target.parent)
    yield unfinished
    Path(unfinished).chmod(0o755)
    Path(unfinished).rename(target)
