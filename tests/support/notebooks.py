"""Notebooks of `examples/`, run from top to bottom in a kernel of their own."""

import os
import tempfile
from typing import Any

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from support.paths import ROOT

FOLDER = ROOT / "examples" / "notebooks"
TIMEOUT_S = 900


def read_notebook(name: str) -> Any:
    """The notebook, as it is in the repository."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def run_notebook(name: str, **variables: str) -> str:
    """Run it and return what its cells have printed or shown as text.

    Args:
        name: without ending.
        variables: environment of the kernel, beside that of the tests.

    Raises:
        CellExecutionError: a cell fails.
    """
    notebook = read_notebook(name)
    with tempfile.TemporaryDirectory(dir="/tmp") as sockets:  # Unix sockets: no port that others could speak to
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/kernel")
        place = {"metadata": {"path": str(FOLDER)}}
        client = NotebookClient(notebook, km=kernel, timeout=TIMEOUT_S, startup_timeout=TIMEOUT_S, resources=place)
        client.execute(env={**os.environ, "PYDEVD_DISABLE_FILE_VALIDATION": "1", **variables})
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)
