"""Memory of the host while images travel: as much after many steps as after few.

    python -m benchmarks.host_memory [--steps 20] [--batch 8] [--megapixels 4] [--set SECTION.KEY=VALUE]

The real jobs `fgaif sample` and `fgaif align` on photograph-like JPEG files, no two of them the same, with the tiny
models of the embedded world: these scale every image to 60 x 60 pixels, so that little is computed and all else is as
large as the images. While they run, the memory of every process is looked at twice a second: its own pages (USS), and
beside them what the object store holds, whose pages processes share. Start, middle and end are medians over parts of
the blocks of sampling and of the steps of alignment (`PARTS`); the first ones, which load models and fill caches, are
in none of them. The last line is one JSON object, for each of the two jobs:

* ``growth``: memory of all processes and the object store at the end, over that at the start;
* ``largest_growth``: the same of the role that grew most, among those of more than 50 MiB;
* ``store_peak_mib``: the most that the object store held;
* ``store_mib_per_image``: what went through the object store, over the number of images.
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import psutil
from PIL import Image

from benchmarks import PAPER_SETUP
from benchmarks.ppo import ENVIRONMENT
from benchmarks.rewards import make_models
from fgaif_ray import storage
from fgaif_ray.config import Config, load_config
from fgaif_ray.rl.run_log import METRICS_FILE, read_lines
from fgaif_ray.storage import stages

MIB: Final = 1 << 20
INTERVAL_S: Final = 0.5
PARTS: Final = {"start": (0.1, 0.3), "middle": (0.45, 0.65), "end": (0.8, 1.0)}
"""Shares of all steps."""
DRIVER: Final = "driver"
RAY: Final = "Ray itself"
STORE: Final = "object store"
PARTS_OF_TITLES: Final = {
    "samplers": "(Sampler)",
    "rollout workers": "RolloutWorker",
    "learners": "RayTrainWorker",
    "reward replicas": "SharedReward",
    "reward gateway": "RewardGateway",
}
"""What the titles of the processes of a role hold."""
SMALL_MIB: Final = 50.0
SMALL_JOB: Final = (
    "sample.max_tokens=32",
    "serve.placement=shared",
    "align.rollout.max_tokens=32",
    "align.rollout.workers=2",
    "align.ppo.epochs=1",
    "align.ppo.learning_rate=1.0e-9",
    "align.ppo.critic_learning_rate=1.0e-9",
)
"""Enough for every message that there is; responses keep their length."""

Memory = dict[str, float]
"""MiB by role."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at a time."""

    share: float
    """Of the steps that were done."""
    memory: Memory


@dataclass(frozen=True, slots=True)
class Measured:
    """A job that was watched."""

    looks: list[Look]
    through_store_mib: float
    """That was created in the object store meanwhile."""

    def at(self, part: str) -> Memory:
        """The memory in one of ``PARTS``, the median for each role that was there.

        Raises:
            ValueError: nothing was seen there; the steps are too few.
        """
        low, high = PARTS[part]
        seen = [look.memory for look in self.looks if low <= look.share <= high]
        if not seen:
            raise ValueError(f"nothing was seen at the {part}: more steps are needed")
        roles = {role: None for memory in seen for role in memory}
        return {role: statistics.median(memory.get(role, 0.0) for memory in seen) for role in roles}

    def describe(self, title: str) -> str:
        """A table for people."""
        columns = {part: self.at(part) for part in PARTS}
        roles = [
            role for role in (DRIVER, *PARTS_OF_TITLES, RAY, STORE) if any(role in one for one in columns.values())
        ]
        rows = ["".join(f"{one.get(role, 0.0):10.1f}" for one in columns.values()) for role in roles]
        lines = [f"  {role:<16}{row}" for role, row in zip(roles, rows, strict=True)]
        return "\n".join([f"{title}: MiB at the start, in the middle and at the end", *lines])

    def figures(self, images: int) -> dict[str, float]:
        """What goes into the last line."""
        start, end = self.at("start"), self.at("end")
        growths = [end.get(role, 0.0) / before for role, before in start.items() if before > SMALL_MIB]
        return {
            "growth": round(sum(end.values()) / sum(start.values()), 4),
            "largest_growth": round(max(growths), 4),
            "store_peak_mib": round(max(look.memory[STORE] for look in self.looks), 2),
            "store_mib_per_image": round(self.through_store_mib / images, 4),
        }


def role_of(title: str) -> str:
    """The role of a process that Ray has started, by its command line."""
    return next((role for role, part in PARTS_OF_TITLES.items() if part in title), RAY)


class ObjectStore:
    """The object store of the Ray that this process is connected to."""

    def __init__(self) -> None:
        import ray
        from ray._private.internal_api import get_state_from_address

        self._state = get_state_from_address(ray.get_runtime_context().gcs_address)

    def mib(self) -> tuple[float, float]:
        """What it holds, and what was ever created in it."""
        from ray._private.internal_api import get_memory_info_reply

        stats: Any = get_memory_info_reply(self._state).store_stats
        return stats.object_store_bytes_used / MIB, stats.cumulative_created_bytes / MIB


class Watch:
    """Looks at this process, all that it has started, and the object store while the block runs.

    Example: ``with Watch(lambda: done() / 20) as watch: ...`` and then ``watch.measured()``
    """

    def __init__(self, share: Callable[[], float]) -> None:
        self._share = share
        self._store = ObjectStore()
        self._looks: list[Look] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watch")

    def __enter__(self) -> Self:
        self._created = self._store.mib()[1]
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._created = self._store.mib()[1] - self._created

    def measured(self) -> Measured:
        """What was seen; the block has ended."""
        return Measured(self._looks, self._created)

    def _watch(self) -> None:
        own, share = psutil.Process(), 0.0
        while not self._done.wait(INTERVAL_S):
            with suppress(FileNotFoundError):  # a stage that is being published: its share is 1
                share = self._share()
            memory = {DRIVER: own.memory_full_info().uss / MIB, STORE: self._store.mib()[0]}
            for process in own.children(recursive=True):
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                    role = role_of(" ".join(process.cmdline()))
                    memory[role] = memory.get(role, 0.0) + process.memory_full_info().uss / MIB
            self._looks.append(Look(share, memory))


def write_photographs(folder: Path, count: int, megapixels: float) -> float:
    """Write as many JPEG files with the detail of a photograph; returns their mean size in MiB."""
    side = round((megapixels * 1e6) ** 0.5)
    generator = np.random.default_rng(0)
    rough = Image.fromarray(generator.integers(0, 255, (side // 40 + 1, side // 40 + 1, 3), dtype=np.uint8))
    smooth = np.asarray(rough.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = generator.integers(-8, 9, (side, side, 1), dtype=np.int16)
    picture = np.clip(smooth + grain, 0, 255).astype(np.uint8)
    folder.mkdir()
    for number in range(count):
        Image.fromarray(np.roll(picture, number * 7, axis=1)).save(folder / f"{number:05d}.jpg", quality=88)
    return statistics.mean(path.stat().st_size for path in folder.iterdir()) / MIB


def configure(folder: str, steps: int, batch: int, changes: Sequence[str] = ()) -> Config:
    """The embedded world's configuration, for photographs in `folder`/images, one of which is read for each response.

    Args:
        folder: of images and run.
        steps: blocks of sampling, and steps of alignment.
        batch: images of each.
        changes: further overrides.
    """
    return load_config(
        Path(__file__).resolve().parent.parent / "configs" / "shapes.yaml",
        [
            *PAPER_SETUP,
            f"run.dir={folder}/run",
            "data.source=folder",
            f"data.path={folder}/images",
            f"data.sample_images={steps * batch}",
            f"data.align_images={steps * batch}",
            "data.evaluate_images=1",
            f"sample.batch_size={batch}",
            f"align.steps={steps}",
            f"align.rollout_batch_size={batch}",
            f"align.ppo.minibatch_size={batch}",
            f"align.checkpoint_every={steps}",
            *SMALL_JOB,
            *changes,
        ],
    )


def measure(config: Config, steps: int) -> Mapping[str, Measured]:
    """Sample and align while the memory is watched."""
    from actors.cluster.connect import connect
    from actors.rewards import service
    from jobs import align, sample

    def parts() -> int:
        folders = (storage.join(config.run.dir, f"{stages.RESPONSES}{suffix}") for suffix in (".partial", ""))
        return max(len(storage.list_parts(folder)) for folder in folders)

    def logged() -> int:
        folders = (storage.join(config.run.dir, f"{stages.POLICY}{suffix}") for suffix in (".partial", ""))
        return max(len(read_lines(storage.join(folder, METRICS_FILE))) for folder in folders)

    found = {}
    models = make_models(config, Path(config.run.dir) / "rewards")
    with connect(config):
        with Watch(lambda: parts() / steps) as watch:
            sample.run(config)
        found["sampling"] = watch.measured()
        service.deploy(config, models)
        try:
            with Watch(lambda: logged() / steps) as watch:
                align.run(config)
        finally:
            service.shutdown(config.serve.app_name)
        found["alignment"] = watch.measured()
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="blocks of sampling, and steps of alignment")
    parser.add_argument("--batch", type=int, default=8, help="images of each")
    parser.add_argument("--megapixels", type=float, default=4.0, help="of an image")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change one key")
    options = parser.parse_args(arguments)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    images = options.steps * options.batch
    with tempfile.TemporaryDirectory(prefix="fgaif-memory-") as folder:
        size = write_photographs(Path(folder) / "images", 2 * images + 1, options.megapixels)
        config = configure(folder, options.steps, options.batch, options.set)
        found = measure(config, options.steps)
    title = f"{options.steps} times {options.batch} images of {options.megapixels:g} MP, files of {size:.2f} MiB"
    for name, one in found.items():
        print(one.describe(f"{name}, {title}"), flush=True)
    print(json.dumps({name: one.figures(images) for name, one in found.items()}))


if __name__ == "__main__":
    main()
