"""The distributions that pyproject.toml names are those whose modules the packages import."""

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.paths import ROOT

PACKAGES = ("fgaif_ray", "actors", "jobs")
INDIRECT = {"tensorboard", "num2words"}
"""Needed by a module of another distribution: ``torch.utils.tensorboard``, transformers' processor of SmolVLM."""


def imported_distributions() -> set[str]:
    """Of every import, inside functions too; a module that is not installed gives its own name."""
    distributions = packages_distributions()
    found = set()
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            found |= {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {*PACKAGES}
    return {canonicalize_name(distributions.get(name, [name])[0]) for name in found}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def names_of(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def test_every_import_is_declared(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    optional = [text for name, extra in extras.items() if name != "dev" for text in extra]
    assert imported_distributions() - names_of([*project["dependencies"], *optional]) == set()


def test_every_dependency_is_imported(project: dict[str, Any]) -> None:
    assert names_of(project["dependencies"]) - imported_distributions() == INDIRECT
