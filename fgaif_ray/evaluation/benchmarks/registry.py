"""The benchmarks that `fgaif benchmark` knows, one file each. A benchmark's file is imported when it is asked for."""

import difflib
import importlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from fgaif_ray.config import BenchmarkConfig, BenchmarksConfig
from fgaif_ray.errors import UserError

if TYPE_CHECKING:
    from fgaif_ray.evaluation.benchmarks.base import Benchmark, RewardBenchmark


@dataclass(frozen=True, slots=True)
class BenchmarkInfo:
    """What is known of a benchmark before its file is imported.

    Example: ``BenchmarkInfo("pope", "Pope", "yes/no questions about objects")``
    """

    module: str
    """File of this package."""
    reader: str
    """Its class, a ``Benchmark`` or a ``RewardBenchmark``."""
    summary: str
    """For the help."""
    about: Literal["policy", "rewards"] = "policy"
    """What is scored: answers of the policy, or verdicts of the reward models."""
    holds_images: bool = False
    """Whether the images come within the official file, so that ``images`` may be left out."""


REGISTRY: Final[Mapping[str, BenchmarkInfo]] = {
    "pope": BenchmarkInfo("pope", "Pope", "yes/no questions about objects"),
    "chair": BenchmarkInfo("chair", "Chair", "objects in captions of COCO images"),
    "amber": BenchmarkInfo("amber", "Amber", "descriptions, and yes/no questions"),
    "mmhal": BenchmarkInfo("mmhal", "MMHal", "MMHal-Bench: 96 questions, rated by a judge"),
    "llava_bench": BenchmarkInfo("llava_bench", "LlavaBench", "answers rated by a judge beside a reference"),
    "obj_halbench": BenchmarkInfo(
        "obj_halbench", "ObjHalBench", "Object HalBench: objects in descriptions, found by a judge", holds_images=True
    ),
    "hallusionbench": BenchmarkInfo("hallusionbench", "HallusionBench", "groups of yes/no questions"),
    "humblebench": BenchmarkInfo("humblebench", "HumbleBench", 'multiple choice with "None of the above"'),
    "halloc": BenchmarkInfo("halloc", "HalLoc", "marked errors, to test the reward models", about="rewards"),
}
"""Name, which is also the key below ``evaluate.benchmarks`` -> benchmark, in the order of results."""
NAMES: Final = tuple(REGISTRY)


def shown_name(name: str) -> str:
    """Return a name as it is written on a command line."""
    return name.replace("_", "-")


def listing() -> list[tuple[str, str]]:
    """List every benchmark with its summary, for the help."""
    return [(shown_name(name), info.summary) for name, info in REGISTRY.items()]


def parse_names(text: str) -> list[str]:
    """Parse the names of benchmarks, such as ``"pope,llava-bench"``.

    Raises:
        UserError: a name is unknown, or there is none; the message has the nearest name.
    """
    names = [name.strip().replace("-", "_") for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in REGISTRY]
    if unknown or not names:
        known = ", ".join(map(shown_name, NAMES))
        near = difflib.get_close_matches(unknown[0].lower(), NAMES, n=1) if unknown else []
        hint = f" (did you mean {shown_name(near[0])}?)" if near else ""
        raise UserError(f"NAMES are some of {known}, separated by commas, not {text!r}{hint}.")
    return list(dict.fromkeys(names))


def settings_of(config: BenchmarksConfig, name: str) -> BenchmarkConfig:
    """Return the configuration section of a benchmark.

    Raises:
        UserError: it is not configured.
    """
    section: BenchmarkConfig | None = getattr(config, name)
    if section is None:
        raise UserError(
            f"Set evaluate.benchmarks.{name}.path to the folder that holds the official files of {name} "
            "(docs/benchmarks.md)."
        )
    return section


def load_benchmark(
    config: BenchmarksConfig, name: str, images: Collection[str], *, draw: bool = True, seed: int = 0
) -> "Benchmark":
    """Read a benchmark of the policy.

    Args:
        config: ``evaluate.benchmarks``.
        name: one of NAMES.
        images: file names that CHAIR can ask about; the others have images of their own.
        draw: whether CHAIR draws some of them.
        seed: of that draw.

    Raises:
        UserError: it is not configured, or a file is missing or has another form.
    """
    benchmark: Benchmark = _reader(name, "policy").read(settings_of(config, name), images, draw=draw, seed=seed)
    return benchmark


def load_reward_benchmark(config: BenchmarksConfig, name: str) -> "RewardBenchmark":
    """Read a benchmark of reward models; arguments and errors as in ``load_benchmark``."""
    benchmark: RewardBenchmark = _reader(name, "rewards")(settings_of(config, name))
    return benchmark


def _reader(name: str, about: str) -> Any:
    info = REGISTRY[name]
    if info.about != about:
        raise ValueError(f"{name} is a benchmark of the {info.about}")
    return getattr(importlib.import_module(f"fgaif_ray.evaluation.benchmarks.{info.module}"), info.reader)
