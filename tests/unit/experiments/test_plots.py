"""The plots of an experiment: drawings that a parser reads, with a mark for every variant inside the frame."""

import re
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from fgaif_ray.experiments.metrics import RunMetric
from fgaif_ray.experiments.plots import Plot, draw_plots
from fgaif_ray.experiments.results import DONE, RunOutcome, build_results
from fgaif_ray.experiments.variants import Experiment, Variant

LONG = "a name that is much longer than any name that a plot has room for & <b>"


def results(**families: str | None) -> dict[str, Any]:
    """Two seeds of each variant; with families, levels of noise that rise from the first variant on."""
    variants = tuple(
        Variant(name, LONG if name == "long" else name, family=family, level=place / 10)
        for place, (name, family) in enumerate(families.items())
    )
    outcomes = [
        RunOutcome(
            variant.name,
            seed,
            "runs",
            DONE,
            {
                "hallucination.overall": RunMetric(0.1 + place / 10 + seed / 50),
                "hallucination.before": RunMetric(0.6),
                "coverage": RunMetric(0.8 - place / 20),
                "coverage.before": RunMetric(0.9),
                "rewards_present.mean": RunMetric(0.9 - place / 10),
            },
        )
        for place, variant in enumerate(variants)
        for seed in range(2)
    ]
    return build_results(Experiment("x", "?", variants), outcomes)


def drawn(plots: list[Plot], name: str) -> ET.Element:
    [plot] = [plot for plot in plots if plot.name == name]
    return ET.fromstring(plot.svg)


def words(drawing: ET.Element) -> list[str]:
    return [text.text or "" for text in drawing.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("families", [{"a": None, "long": None}, {"a": None, "b": "all", "c": "all", "d": "one"}])
def test_everything_lies_inside_the_drawing(families: dict[str, str | None]) -> None:
    for plot in draw_plots(results(**families)):
        _, _, width, height = map(float, ET.fromstring(plot.svg).attrib["viewBox"].split())
        svg = plot.svg.decode()
        xs = [float(x) for x in re.findall(r' (?:c?x[12]?)="(-?[\d.]+)"', svg)]
        ys = [float(y) for y in re.findall(r' (?:c?y[12]?)="(-?[\d.]+)"', svg)]
        assert min(xs) >= 0 and max(xs) <= width
        assert min(ys) >= 0 and max(ys) <= height


def test_a_variant_has_a_row_and_its_seeds() -> None:
    drawing = drawn(draw_plots(results(a=None, b=None, long=None)), "variants")
    rows = [text for text in words(drawing) if text in ("a", "b") or text.endswith("\u2026")]
    assert rows == ["a", "b", LONG[:43] + "\u2026"]
    seeds = [path for path in drawing.iter("{http://www.w3.org/2000/svg}path") if path.attrib.get("class") == "line"]
    assert len(seeds) == 2 * 3


def test_a_higher_figure_is_further_to_the_right() -> None:
    svg = next(plot.svg for plot in draw_plots(results(a=None, b=None, c=None)) if plot.name == "variants").decode()
    places = [float(x) for x in re.findall(r'<circle style="fill:#0b7285" cx="([\d.]+)"', svg)]
    assert len(places) == 3 and places == sorted(places)


def test_lines_over_noise_start_together_and_are_named_by_their_family() -> None:
    plots = draw_plots(results(none=None, b="all", c="all", d="one"))
    assert [plot.name for plot in plots] == ["variants", "rewards", "hallucination", "coverage"]
    drawing = drawn(plots, "rewards")
    lines = [
        path.attrib["d"]
        for path in drawing.iter("{http://www.w3.org/2000/svg}path")
        if path.attrib.get("class") == "line"
    ]
    assert len(lines) == 2 and len({line.split("L")[0] for line in lines}) == 1
    assert words(drawing)[-2:] == ["all", "one"]
