"""Imports point one way and in no circle, nothing is unpickled or evaluated, and what is written is packaged."""

import ast
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.paths import ROOT

from jobs.cli import SUMMARIES
from scripts.set_up import locked_entries

PACKAGES = ("fgaif_ray", "actors", "jobs")
FORBIDDEN_IMPORTS = {
    "fgaif_ray": {"ray", "vllm", "actors", "jobs"},
    "actors": {"jobs"},
    "jobs": set(),
}
BESIDE_COMMANDS = {"__init__", "cli", "old_flags"}
"""Files of jobs that are not commands."""
CALLERS = {"pipeline", "demo", "reproduce"}
"""Commands that run others."""
UNSAFE_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "numpy.load", "np.load", "yaml.load", "yaml.unsafe_load"}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Absolute names of the modules that a file imports, at its top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""


def import_graph(package: str) -> dict[str, set[str]]:
    """Which rooms of a package, folders and files directly in it, import which others of it."""
    graph: dict[str, set[str]] = {}
    for path in sources(package):
        room = path.relative_to(ROOT / package).with_suffix("").parts[0]
        imported = graph.setdefault(room, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            imported |= {parts[1] for name in names if (parts := name.split("."))[0] == package and len(parts) > 1}
    return {room: (imported & graph.keys()) - {room} for room, imported in graph.items()}


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Rooms that import each other in a circle; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle
    return []


def dotted_name(node: ast.AST) -> str:
    """`torch.load` of the expression `torch.load`, empty for anything but names."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted_name(node.value)}.{node.attr}"
    return ""


def unsafe_uses(tree: ast.AST) -> Iterator[str]:
    for name in imported_modules(tree):
        if name.partition(".")[0] in UNSAFE_MODULES:
            yield f"import {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            yield from (f"from torch import {alias.name}" for alias in node.names if alias.name == "load")
        if not isinstance(node, ast.Call):
            continue
        if dotted_name(node.func) in UNSAFE_CALLS:
            yield f"{dotted_name(node.func)}() on line {node.lineno}"
        for keyword in node.keywords:
            off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg == "trust_remote_code" and not off:
                yield f"trust_remote_code on line {node.lineno}"


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(package)
        for name in imported_modules(ast.parse(path.read_text(encoding="utf-8")))
        if name.partition(".")[0] in FORBIDDEN_IMPORTS[package]
    ]
    assert wrong == []


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_import_each_other_in_no_circle(package: str) -> None:
    graph = import_graph(package)
    assert len(graph) > 5
    assert circle_in(graph) == []


def test_a_circle_is_seen() -> None:
    assert circle_in({"rl": {"vlm"}, "vlm": {"config"}, "config": set()}) == []
    assert set(circle_in({"rl": {"vlm"}, "vlm": {"config"}, "config": {"rl"}})) == {"rl", "vlm", "config"}


def test_a_job_imports_no_other() -> None:
    borrowed = {job: imported - BESIDE_COMMANDS for job, imported in import_graph("jobs").items()}
    assert {job for job, imported in borrowed.items() if imported} == CALLERS


def test_every_file_of_jobs_is_a_command() -> None:
    files = {path.stem for path in sources("jobs")}
    assert files - BESIDE_COMMANDS == {name.replace("-", "_") for name in SUMMARIES}


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_is_unpickled_or_evaluated(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {use}"
        for path in sources(package)
        for use in unsafe_uses(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "def f():\n    from cloudpickle import dumps",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "eval('1')",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=flag)",
    ],
)
def test_an_unsafe_use_is_seen(code: str) -> None:
    assert list(unsafe_uses(ast.parse(code))) != []


def test_a_model_in_evaluation_mode_is_not_taken_for_eval() -> None:
    assert list(unsafe_uses(ast.parse("model.eval()\nf(trust_remote_code=False)"))) == []


def test_every_folder_of_modules_is_a_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = set(setuptools.find_packages(str(ROOT), include=settings["packages"]["find"]["include"]))
    folders = {path.parent.relative_to(ROOT) for package in PACKAGES for path in sources(package)}
    assert {".".join(folder.parts) for folder in folders} == found


def test_every_data_file_is_packaged() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    covered = {path for pattern in settings["package-data"]["fgaif_ray"] for path in (ROOT / "fgaif_ray").glob(pattern)}
    ours = {
        path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
    assert ours - covered == set()


def test_the_lock_satisfies_every_requirement() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(pin.split("==") for pin in locked_entries(ROOT / "requirements" / "cpu.lock"))
    extras = project["optional-dependencies"]
    wanted = [Requirement(text) for text in [*project["dependencies"], *extras["cpu"], *extras["dev"]]]
    unmet = [
        str(requirement)
        for requirement in wanted
        if pins.get(canonicalize_name(requirement.name), "0") not in requirement.specifier
    ]
    assert unmet == []


def test_a_public_class_has_one_name_and_a_name_one_class() -> None:
    places: dict[str, list[str]] = {}
    for package in PACKAGES:
        for path in sources(package):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
