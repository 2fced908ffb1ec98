"""The registry of benchmarks: names, sections of the configuration, help, and what is said of a wrong name."""

import importlib

import pytest

from fgaif_ray.config import BenchmarksConfig
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation.benchmarks.registry import NAMES, REGISTRY, listing, parse_names
from jobs.cli import main


def test_every_benchmark_has_a_section_and_every_section_a_benchmark() -> None:
    assert set(NAMES) == set(BenchmarksConfig.model_fields)


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_is_in_its_file_under_its_name(name: str) -> None:
    info = REGISTRY[name]
    reader = getattr(importlib.import_module(f"fgaif_ray.evaluation.benchmarks.{info.module}"), info.reader)
    assert reader.name == name


def test_the_help_lists_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    main("benchmark", ["--help"])
    shown = {line.strip().partition("  ")[0] for line in capsys.readouterr().out.splitlines()}
    assert {name for name, _ in listing()} <= shown


@pytest.mark.parametrize(
    ("wrong", "right"), [("popee", "pope"), ("LLaVA-bench", "llava-bench"), ("pope,ambr", "amber")]
)
def test_an_unknown_name_brings_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(UserError, match=rf"did you mean {right}\?"):
        parse_names(wrong)


def test_a_name_like_no_other_brings_no_suggestion() -> None:
    with pytest.raises(UserError, match=r"not 'zzz'\.$"):
        parse_names("zzz")
