"""The tests themselves: what needs Ray or vLLM, and what takes many minutes, is told apart by folder."""

import ast
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from support.paths import ROOT

TESTS = ROOT / "tests"
FOLDERS = ("unit", "integration", "proofs")
NEEDS_A_CLUSTER = {"ray", "vllm"}


def files_of(folder: str) -> list[Path]:
    return sorted((TESTS / folder).rglob("test_*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def marks(node: ast.AST) -> set[str]:
    """Names of the marks within a node: `ray` of `pytest.mark.ray`."""
    return {
        found.attr
        for found in ast.walk(node)
        if isinstance(found, ast.Attribute) and isinstance(found.value, ast.Attribute) and found.value.attr == "mark"
    }


def marks_of_tests(path: Path) -> dict[str, set[str]]:
    """Each test function of a file with its own marks and those of its class and file."""
    tree = tree_of(path)
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    of_file = set[str]().union(*(marks(node) for node in assigned if ast.unparse(node.targets[0]) == "pytestmark"))
    found = {}
    for node in tree.body:
        functions = node.body if isinstance(node, ast.ClassDef) else [node]
        of_class = set[str]().union(*map(marks, node.decorator_list)) if isinstance(node, ast.ClassDef) else set()
        for function in functions:
            if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
                found[function.name] = of_file.union(of_class, *map(marks, function.decorator_list))
    return found


def names_of(path: Path) -> set[str]:
    """Parameters and words in quotes: fixtures that a file asks for are among them."""
    nodes = list(ast.walk(tree_of(path)))
    parameters = {node.arg for node in nodes if isinstance(node, ast.arg)}
    return parameters | {str(node.value) for node in nodes if isinstance(node, ast.Constant)}


def test_unit_tests_need_neither_ray_nor_vllm_nor_many_minutes() -> None:
    wrong = [
        f"{path.relative_to(TESTS)}::{name}"
        for path in files_of("unit")
        for name, found in marks_of_tests(path).items()
        if found & {*NEEDS_A_CLUSTER, "proof"}
    ]
    assert wrong == []


def test_no_unit_test_takes_a_cluster() -> None:
    others = [path for path in files_of("unit") if path != Path(__file__)]
    assert [path.name for path in others if names_of(path) & {"ray_cluster", "nodes"}] == []


def test_every_integration_test_says_what_it_needs() -> None:
    silent = [
        f"{path.relative_to(TESTS)}::{name}"
        for path in files_of("integration")
        for name, found in marks_of_tests(path).items()
        if not found & NEEDS_A_CLUSTER
    ]
    assert silent == []


def test_proofs_are_what_is_in_their_folder() -> None:
    for folder in FOLDERS:
        for path in files_of(folder):
            for name, found in marks_of_tests(path).items():
                assert ("proof" in found) == (folder == "proofs"), f"{path.relative_to(TESTS)}::{name}"


def test_every_test_file_is_in_a_folder_and_has_a_name_of_its_own() -> None:
    """Without packages, pytest tells test files apart by their names."""
    everywhere = sorted(TESTS.rglob("test_*.py"))
    assert everywhere == sorted(path for folder in FOLDERS for path in files_of(folder))
    assert [name for name, count in Counter(path.name for path in everywhere).items() if count > 1] == []


@pytest.mark.parametrize("folder", [*FOLDERS, "support"])
def test_what_tests_share_is_in_support(folder: str) -> None:
    borrowed = [
        f"{path.relative_to(TESTS)} imports {node.module}"
        for path in sorted((TESTS / folder).rglob("*.py"))
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom)
        and ((node.module or "").partition(".")[0] in {*FOLDERS, "tests"} or (node.module or "").startswith("test_"))
    ]
    assert borrowed == []
