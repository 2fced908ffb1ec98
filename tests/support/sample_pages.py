"""The four pages of the project, made by what makes them, of small data."""

from collections.abc import Callable, Mapping
from pathlib import Path

from fgaif_ray.experiments.page import build_page
from fgaif_ray.experiments.plots import draw_plots
from fgaif_ray.fact_types import DEFAULT
from fgaif_ray.report.page import build_report
from fgaif_ray.serving.playground import build_playground
from support.audit_data import audit_file, labelled_run
from support.experiment_results import results
from support.report_run import write_examples, write_run


def _report(folder: Path) -> str:
    write_run(folder, images=4)
    write_examples(folder, count=2, images=4, extremes=1)
    return build_report(str(folder))


def _audit(folder: Path) -> str:
    return audit_file(labelled_run(folder), "audit.html").read_text()


def _playground(_folder: Path) -> str:
    return build_playground(DEFAULT, token_needed=True).html


def _experiment(_folder: Path) -> str:
    found = results()
    return build_page(found, "fgaif experiment ablation", draw_plots(found))


PAGES: Mapping[str, Callable[[Path], str]] = {
    "report": _report,
    "audit": _audit,
    "playground": _playground,
    "experiment": _experiment,
}
"""Name -> what makes the page, with a folder for its data."""
