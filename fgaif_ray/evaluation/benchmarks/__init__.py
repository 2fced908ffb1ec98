"""Public hallucination benchmarks: readers of their official files, and scorers by their official rules.

This package ships no file of a benchmark. It reads the official files that users give, as they are.
"""

from collections.abc import Collection
from typing import Final

from fgaif_ray.config import BenchmarkConfig, BenchmarksConfig
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation.benchmarks.base import Benchmark

NAMES: Final = ("pope", "chair", "amber", "mmhal", "llava_bench")


def parse_names(text: str) -> list[str]:
    """Parse the names of benchmarks, such as ``"pope,llava-bench"``.

    Raises:
        UserError: a name is unknown, or there is none.
    """
    names = [name.strip().replace("-", "_") for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        known = ", ".join(name.replace("_", "-") for name in NAMES)
        raise UserError(f"NAMES are some of {known}, separated by commas, not {text!r}.")
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
) -> Benchmark:
    """Read a benchmark.

    Args:
        config: ``evaluate.benchmarks``.
        name: one of NAMES.
        images: file names that CHAIR can ask about; the others have images of their own.
        draw: whether CHAIR draws some of them.
        seed: of that draw.

    Raises:
        UserError: it is not configured, or a file is missing or has another form.
    """
    settings_of(config, name)
    if name == "pope":
        from fgaif_ray.evaluation.benchmarks.pope import Pope

        assert config.pope is not None
        return Pope(config.pope)
    if name == "chair":
        from fgaif_ray.evaluation.benchmarks.chair import Chair

        assert config.chair is not None
        return Chair(config.chair, images, draw=draw, seed=seed)
    if name == "amber":
        from fgaif_ray.evaluation.benchmarks.amber import Amber

        assert config.amber is not None
        return Amber(config.amber)
    if name == "mmhal":
        from fgaif_ray.evaluation.benchmarks.mmhal import MMHal

        assert config.mmhal is not None
        return MMHal(config.mmhal)
    from fgaif_ray.evaluation.benchmarks.llava_bench import LlavaBench

    assert config.llava_bench is not None
    return LlavaBench(config.llava_bench)
