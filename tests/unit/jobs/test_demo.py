"""The embedded demo from an installed wheel: one that is built here, or that FGAIF_WHEEL names."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from support.paths import ROOT

from fgaif_ray import storage
from fgaif_ray.config import dump_config, load_config
from fgaif_ray.storage import stages
from jobs.cli import main
from jobs.demo import demo_config
from scripts.release import WHEEL_VARIABLE

PACKAGED = ROOT / "fgaif_ray" / "shapes" / "shapes.yaml"
SOURCES = ("fgaif_ray", "actors", "jobs", "configs", "pyproject.toml", "README.md", "LICENSE")


PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def build_wheel(folder: Path) -> Path:
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)
    subprocess.run(
        [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)], check=True
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its own with this project's wheel; its dependencies are read from the tests' environment."""
    folder = tmp_path_factory.mktemp("installed")
    given = os.environ.get(WHEEL_VARIABLE)
    wheel = build_wheel(folder) if given is None else Path(given)
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*PIP, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    (site_packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # Behind the wheel, and without what an editable installation there would add.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv"


def call(environment: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [environment / "bin" / "fgaif", *arguments],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
class TestInstalled:
    def test_a_dry_run_shows_what_would_run_and_starts_nothing(self, environment: Path, tmp_path: Path) -> None:
        done = call(environment, tmp_path, "demo", "--dry-run")
        assert done.returncode == 0, done.stderr
        assert "In fgaif-demo" in done.stdout
        assert "40 steps of 128 responses" in done.stdout
        assert "Nothing was started." in done.stdout
        assert list(tmp_path.iterdir()) == []

    def test_its_configuration_is_the_one_of_the_repository(self, environment: Path) -> None:
        (packaged,) = environment.glob("lib/python*/site-packages/fgaif_ray/shapes/shapes.yaml")
        assert packaged.read_bytes() == (ROOT / "configs" / "shapes.yaml").read_bytes()

    def test_its_models_are_installed(self, environment: Path) -> None:
        code = "from jobs.demo import demo_config; print(demo_config('x').policy.model)"
        done = subprocess.run(
            [environment / "bin" / "python", "-I", "-c", code], capture_output=True, text=True, check=True
        )
        model = Path(done.stdout.strip())
        assert environment in model.parents
        assert (model / "model.safetensors").is_file()


def test_the_packaged_configuration_cannot_differ() -> None:
    assert PACKAGED.is_symlink()
    assert PACKAGED.resolve() == ROOT / "configs" / "shapes.yaml"


def test_the_demo_is_the_pipeline_of_the_embedded_world_elsewhere(tmp_path: Path) -> None:
    found = dump_config(demo_config(str(tmp_path / "run"))).replace(f"{ROOT}/", "")
    wanted = dump_config(load_config(ROOT / "configs" / "shapes.yaml", [f"run.dir={tmp_path / 'run'}"]))
    assert found == wanted


def test_a_taste_is_smaller(tmp_path: Path) -> None:
    whole, taste = demo_config(str(tmp_path)), demo_config(str(tmp_path), quick=True)
    assert taste.data.sample_images < whole.data.sample_images
    assert taste.align.steps < whole.align.steps


def test_a_finished_stage_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = storage.Stage(str(tmp_path), stages.RESPONSES, "f")
    stage.begin()
    stage.publish({})
    assert main("demo", [str(tmp_path), "--dry-run"]) == 0
    states = {line.split()[0]: line.split()[2] for line in capsys.readouterr().out.splitlines() if "/ " in line}
    assert states["sample"] == "there"
