"""The page of an experiment: complete, by itself, and safe against hostile text."""

import base64
import re
from typing import Any

import pytest
from support.experiment_results import results

from fgaif_ray.config import load_config
from fgaif_ray.experiments.metrics import RunMetric
from fgaif_ray.experiments.page import build_page, describe_intervals
from fgaif_ray.experiments.plots import draw_plots
from fgaif_ray.experiments.results import DONE, PENDING, RunOutcome, build_results
from fgaif_ray.experiments.variants import Experiment, Variant, build_experiment

HOSTILE = "</pre><script>alert(1)</script>"


def build_html(found: dict[str, Any], command: str) -> str:
    return build_page(found, command, draw_plots(found))


@pytest.fixture(scope="module")
def page() -> str:
    return build_html(results(error=HOSTILE), f"python -m jobs.experiment ablation --config {HOSTILE}")


def test_text_from_outside_is_escaped(page: str) -> None:
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)") == 2


def test_the_page_loads_nothing(page: str) -> None:
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*', page) == []
    assert "default-src 'none'" in page


def test_every_variant_has_a_row_in_every_table(page: str) -> None:
    for title in ("full", "w/o-Obj", "w/o-Att", "w/o-Rel", "w-Coarse", "human labels (the truth)"):
        assert page.count(f'<th scope="row">{title}</th>') >= 3  # two tables of figures, and the runs


def test_a_failed_run_is_shown_with_its_words() -> None:
    html = build_html(results(error="out of memory"), "command")
    assert "32 of 33 runs done, 1 failed" in html
    assert ">out of memory</pre>" in html


def test_a_clear_difference_is_coloured_and_an_unclear_one_is_not(page: str) -> None:
    # w/o-Obj is 5 points worse in every seed; of one seed only, a difference has no interval.
    assert '<span class="change bad">+5.0 [+5.0, +5.0]</span>' in page
    single = build_html(results(seeds=1), "command")
    assert '<span class="change neutral">+5.0</span>' in single


def test_the_page_says_what_its_intervals_are() -> None:
    assert "t interval of their mean over seeds" in describe_intervals(results())
    assert "over the images of the evaluation" in describe_intervals(results(seeds=1))


def plots(html: str) -> list[str]:
    return [base64.b64decode(code).decode() for code in re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', html)]


def test_noise_is_plotted_over_its_level() -> None:
    assert [plot.name for plot in draw_plots(results("noise"))] == ["variants", "rewards", "hallucination", "coverage"]


def test_equal_results_give_equal_pages() -> None:
    assert build_html(results(), "command") == build_html(results(), "command")


def test_a_hostile_name_stays_inside_the_plot() -> None:
    experiment = Experiment("x", "?", (Variant("a", "$\\frac{$<script>--><script>"), Variant("b", "b")))
    figures = {"hallucination.overall": RunMetric(0.2), "coverage": RunMetric(0.5)}
    html = build_html(build_results(experiment, [RunOutcome("a", 0, "runs/a", DONE, figures)]), "command")
    assert "<script>" not in html
    assert all("<script>" not in plot for plot in plots(html))


def test_before_the_first_run_the_page_says_so() -> None:
    experiment = build_experiment("cost", load_config("configs/shapes.yaml"))
    outcomes = [RunOutcome("fine", 0, "runs/fine", PENDING, {})]
    assert "No run is done yet." in build_html(build_results(experiment, outcomes), "command")
