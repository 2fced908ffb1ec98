"""The notebooks as they are in the repository; the test of the pipeline runs them on what it has made."""

import ast

import pytest
from support.notebooks import FOLDER, read_notebook
from support.paths import ROOT

NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("name", NAMES)
def test_it_holds_no_outputs(name: str) -> None:
    cells = [cell for cell in read_notebook(name).cells if cell.cell_type == "code"]
    assert cells
    assert [cell.id for cell in cells if cell.outputs or cell.execution_count is not None] == []


@pytest.mark.parametrize("name", NAMES)
def test_its_code_is_python(name: str) -> None:
    for cell in read_notebook(name).cells:
        if cell.cell_type == "code":
            ast.parse(cell.source)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_run_by_a_test(name: str) -> None:
    assert f'run_notebook("{name}"' in (ROOT / "tests/integration/jobs/test_pipeline.py").read_text()
