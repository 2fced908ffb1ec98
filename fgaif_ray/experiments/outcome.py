"""What an experiment shows of the runs that have ended: results, page, plots, and a table for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.experiments.metrics import read_figures
from fgaif_ray.experiments.page import build_page, show_difference, show_figure
from fgaif_ray.experiments.plots import draw_plots
from fgaif_ray.experiments.results import DONE, FAILED, PENDING, RESULTS_FILE, RunOutcome, build_results
from fgaif_ray.experiments.variants import Experiment, Run, experiment_folder
from fgaif_ray.tables import table_lines

PLOTS_FOLDER: Final = "plots"


def write_results(
    config: Config, experiment: Experiment, runs: Sequence[Run], ended: Mapping[str, str | None], command: str
) -> dict[str, Any]:
    """Write results and page from the runs that have ended."""
    outcomes = []
    for one in runs:
        status = PENDING if one.name not in ended else DONE if ended[one.name] is None else FAILED
        figures = read_figures(one.folder) if status == DONE else {}
        outcomes.append(RunOutcome(one.variant.name, one.seed, one.folder, status, figures, ended.get(one.name)))
    results = build_results(experiment, outcomes)
    folder = experiment_folder(config, experiment.name)
    storage.write_json(storage.join(folder, RESULTS_FILE), results)
    plots = draw_plots(results)
    for plot in plots:
        storage.write_bytes(storage.join(folder, PLOTS_FOLDER, f"{plot.name}.svg"), plot.svg)
    storage.write_bytes(storage.join(folder, f"{experiment.name}.html"), build_page(results, command, plots).encode())
    return results


def results_table(results: Mapping[str, Any]) -> list[str]:
    """The headline metrics for the terminal."""

    def show(entry: Mapping[str, Any] | None, written: Any) -> str:
        if entry is None:
            return "-"
        text: str = written(entry["mean"], "share")
        if entry["interval"] is not None:
            text += " [" + ", ".join(written(bound, "share") for bound in entry["interval"]) + "]"
        return text

    rows = [("variant", "hallucination, overall", "difference", "coverage")]
    for variant in results["variants"]:
        overall = variant["figures"].get("hallucination.overall")
        difference = None if overall is None else overall.get("difference")
        coverage = variant["figures"].get("coverage")
        figures = (show(overall, show_figure), show(difference, show_difference), show(coverage, show_figure))
        rows.append((variant["title"], *figures))
    return ["", *table_lines(rows), ""]
