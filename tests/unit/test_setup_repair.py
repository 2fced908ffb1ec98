"""The set-up's torchvision repair, each time in a small virtual environment of the test's own."""

import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
from support.paths import ROOT

REPAIR = ROOT / "scripts" / "repair_torchvision.py"
HOOK = "_torchvision_operators"


class Environment:
    """An empty virtual environment."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True)
        self.python = folder / "bin" / "python"
        self.site_packages = next((folder / "lib").iterdir()) / "site-packages"

    def add_torchvision(self, code: str) -> None:
        (self.site_packages / "torchvision").mkdir()
        (self.site_packages / "torchvision" / "__init__.py").write_text(code)

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self.python, *arguments], capture_output=True, text=True, check=False)

    def repair(self) -> subprocess.CompletedProcess[str]:
        return self.run(REPAIR, "--verify", "pass")

    def hook_files(self) -> list[str]:
        return sorted(path.name for path in self.site_packages.glob(f"{HOOK}.*"))


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")


@pytest.mark.slow
def test_the_installed_torchvision_imports_after_the_repair(environment: Environment) -> None:
    # A plain path entry: the real torch and torchvision are found, a hook beside them is not started.
    (environment.site_packages / "real.pth").write_text(sysconfig.get_path("purelib"))
    assert environment.repair().returncode == 0
    done = environment.run("-c", "import torch, torchvision; print(torch.ops.torchvision.nms)")
    assert done.stdout.strip() == "torchvision.nms", done.stderr


def test_a_sound_torchvision_is_left_alone(environment: Environment) -> None:
    environment.add_torchvision("")
    done = environment.repair()
    assert (done.returncode, environment.hook_files()) == (0, []), done.stderr


def test_no_torchvision_is_nothing_to_repair(environment: Environment) -> None:
    done = environment.repair()
    assert (done.returncode, environment.hook_files()) == (0, []), done.stderr


def test_another_failure_is_reported_and_not_repaired(environment: Environment) -> None:
    environment.add_torchvision("import no_such_module_at_all")
    done = environment.repair()
    assert (done.returncode, environment.hook_files()) == (1, [])
    assert "no_such_module_at_all" in done.stderr


FAILS_UNTIL_DECLARED = """
import torch
if torch.declared != ["nms", "qnms"]:
    raise RuntimeError("operator torchvision::nms does not exist")
"""
SMALL_TORCH = """
declared = []
class library:
    class Library:
        def __init__(self, namespace, kind):
            assert (namespace, kind) == ("torchvision", "DEF")
        def define(self, schema):
            declared.append(schema.partition("(")[0])
"""


@pytest.fixture
def repaired(environment: Environment) -> Environment:
    """An environment whose torchvision needed the repair and got it; its torch records what was declared."""
    environment.add_torchvision(FAILS_UNTIL_DECLARED)
    (environment.site_packages / "torch.py").write_text(SMALL_TORCH)
    assert "declared its operators" in environment.repair().stdout
    return environment


def test_operators_are_declared_before_torchvision_runs(repaired: Environment) -> None:
    done = repaired.run("-c", "import torchvision")
    assert done.returncode == 0, done.stderr


def test_a_second_repair_finds_nothing_to_do(repaired: Environment) -> None:
    assert "nothing to repair" in repaired.repair().stdout


def test_python_starts_without_importing_torch(repaired: Environment) -> None:
    done = repaired.run("-c", f"import sys; print({HOOK!r} in sys.modules, 'torch' in sys.modules)")
    assert done.stdout.strip() == "True False", done.stderr


def test_looking_for_torchvision_does_not_import_torch(repaired: Environment) -> None:
    code = "import importlib.util, sys; print(importlib.util.find_spec('torchvision').name, 'torch' in sys.modules)"
    done = repaired.run("-c", code)
    assert done.stdout.strip() == "torchvision False", done.stderr


def test_a_failure_that_outlives_the_repair_is_reported(environment: Environment) -> None:
    environment.add_torchvision('raise RuntimeError("operator torchvision::nms does not exist")')
    (environment.site_packages / "torch.py").write_text(SMALL_TORCH)
    done = environment.repair()
    assert done.returncode == 1
    assert "even with its operators declared" in done.stderr
