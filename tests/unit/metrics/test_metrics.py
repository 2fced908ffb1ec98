"""Metrics are declared once, by Prometheus' conventions, and the dashboard asks for nothing else."""

import importlib.resources
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.metrics_endpoint import exported_names

from actors.labelling.call_metrics import failure_kind
from actors.metrics import METRICS
from actors.metrics.instruments import OTHER, Counter, Gauge, Histogram
from fgaif_ray.config import GuardConfig
from fgaif_ray.rl.guards import StepMetrics, TrainingGuards, TrainingStopped
from scripts.grafana_dashboard import PATH, content

BASE_UNITS = ("seconds", "ratio", "nats", "bytes")
OTHER_UNITS = re.compile(r"_(ms|milliseconds|minutes|percent|kb|mb|mib|share)(_|$)")
RAY_LABELS = {"SessionName", "NodeAddress", "instance", "WorkerId", "le"}
SELECTOR = re.compile(r"(\w+)\{([^}]*)\}")
CONDITION = re.compile(r'(\w+)(=~|=)"([^"]*)"')
GROUPING = re.compile(r"by \(([^)]*)\)")
LEGEND = re.compile(r"\{\{(\w+)\}\}")


# Declarations


@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_names_follow_the_conventions_of_prometheus(metric: Any) -> None:
    assert re.fullmatch(r"fgaif(_[a-z]+)+", metric.name)
    assert metric.name.endswith("_total") == isinstance(metric, Counter)
    assert not OTHER_UNITS.search(metric.name)
    if metric.unit in BASE_UNITS:
        assert metric.unit in metric.name.removesuffix("_total").split("_")
    assert metric.description and "\n" not in metric.description


@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_labels_have_few_values_and_none_of_the_names_that_ray_gives(metric: Any) -> None:
    series = 1
    for label, values in metric.labels.items():
        assert label not in RAY_LABELS and re.fullmatch(r"[a-z]+(_[a-z]+)*", label)
        assert len(set(values)) == len(values)
        series *= len(values)
    assert series <= 150


def test_every_metric_is_recorded_somewhere(repository: Path) -> None:
    catalogue = repository / "actors" / "metrics" / "__init__.py"
    declared = catalogue.read_text()
    code = "".join(path.read_text() for path in (repository / "actors").rglob("*.py") if path != catalogue)
    names = re.findall(r"^([A-Z_]+): Final = (?:Counter|Gauge|Histogram)\(", declared, re.MULTILINE)
    assert len(names) == len(METRICS)
    assert [name for name in names if not re.search(rf"\b\w+\.{name}\b", code)] == []


# Instruments


def test_a_label_outside_the_declared_values_is_other_or_an_error() -> None:
    open_ended = Counter(name="fgaif_a_total", unit="x", description="x", labels={"code": ("busy", OTHER)})
    closed = Counter(name="fgaif_b_total", unit="x", description="x", labels={"code": ("busy",)})
    assert open_ended._labels({"code": "made up by a stranger"}) == {"code": OTHER}
    with pytest.raises(ValueError, match="no code 'new'"):
        closed.inc(code="new")


def test_labels_have_to_be_given_as_declared() -> None:
    gauge = Gauge(name="fgaif_c", unit="x", description="x", labels={"stage": ("label",)})
    with pytest.raises(ValueError, match="has the labels"):
        gauge.set(1)
    with pytest.raises(ValueError, match="has the labels"):
        gauge.set(1, stage="label", more="x")


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_a_counter_only_grows(value: float) -> None:
    with pytest.raises(ValueError, match="cannot grow"):
        Counter(name="fgaif_d_total", unit="x", description="x").inc(value)


def test_without_ray_recording_does_nothing() -> None:
    code = (
        "from actors.metrics.instruments import *\n"
        "Counter(name='fgaif_e_total', unit='x', description='x').inc(2)\n"
        "Gauge(name='fgaif_f', unit='x', description='x').set(float('nan'))\n"
        "Histogram(name='fgaif_g_seconds', unit='x', description='x', boundaries=(1.0,)).observe(3)\n"
        "import ray; assert not ray.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("status 429", "rate_limited"),
        ("status 503", "server_error"),
        ("status 404", "client_error"),
        ("status 599", "server_error"),
        ("timeout", "timeout"),
        ("connection", "connection"),
        ("something new", "other"),
    ],
)
def test_reasons_of_failed_calls_are_told_in_few_words(reason: str, kind: str) -> None:
    assert failure_kind(reason) == kind


@pytest.mark.parametrize(
    "changes",
    [
        {"kl": 9.0},
        {"entropy": 0.0},
        {"identical_share": 1.0},
        {"missing_reward_share": 0.9},
        {"non_finite": True},
    ],
)
def test_every_guard_has_a_label_value(changes: dict[str, Any]) -> None:
    figures = {
        "kl": 0.1,
        "entropy": 1.0,
        "response_length": 9.0,
        "identical_share": 0.0,
        "missing_reward_share": 0.0,
        "facts_per_response": 2.0,
    }
    guards = TrainingGuards(GuardConfig(patience=1, max_non_finite_streak=1))
    with pytest.raises(TrainingStopped) as stopped:
        guards.check(StepMetrics(**figures | changes))
    known = METRICS["fgaif_ppo_guard_trips_total"].labels["guard"]
    assert str(stopped.value).partition(":")[0] in known
    assert set(guards.state_dict()["streaks"]) <= set(known)


# The dashboard


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(PATH.read_text())
    return loaded


def queries() -> Iterator[tuple[str, str, str]]:
    """Title, expression and legend of every query."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"], target["legendFormat"]


def exported() -> dict[str, dict[str, tuple[str, ...]]]:
    """Our series with their labels."""
    return {
        name: dict(metric.labels) | ({"le": ()} if isinstance(metric, Histogram) else {})
        for metric in METRICS.values()
        for name in exported_names(metric)
    }


def documented_by_ray() -> set[str]:
    """The names that Ray's own dashboards ask for."""
    folder = importlib.resources.files("ray.dashboard.modules.metrics.dashboards")
    sources = [file.read_text() for file in folder.iterdir() if file.name.endswith("_panels.py")]
    return {name for source in sources for name in re.findall(r"\bray_\w+", source)}


def test_the_dashboard_is_what_its_script_writes() -> None:
    assert PATH.read_text() == content(), "run `python -m scripts.grafana_dashboard`"


@pytest.mark.parametrize(("title", "expression", "legend"), list(queries()))
def test_every_query_asks_for_metrics_and_labels_that_exist(title: str, expression: str, legend: str) -> None:
    ours, rays = exported(), documented_by_ray()
    selectors = SELECTOR.findall(expression)
    assert {name for name, _ in selectors} == set(re.findall(r"\bray_\w+", expression)) != set()
    labels: set[str] = set()
    for name, conditions in selectors:
        assert name in (ours if name.startswith("ray_fgaif_") else rays)
        found = CONDITION.findall(conditions)
        assert ("SessionName", "=~", "$session") in found
        for label, operator, wanted in found:
            if name in ours and label != "SessionName":
                assert operator == "=" and wanted in ours[name][label]
        labels |= set(ours.get(name, {}))
    if selectors[0][0] in ours:
        grouped = {label.strip() for group in GROUPING.findall(expression) for label in group.split(",")}
        assert grouped <= labels
        assert set(LEGEND.findall(legend)) <= grouped - {"le"}


def test_every_metric_is_shown() -> None:
    shown = {name for _, expression, _ in queries() for name, _ in SELECTOR.findall(expression)}
    missing = [metric.name for metric in METRICS.values() if not shown & set(exported_names(metric))]
    # Steps as a counter serve alerts: `rate(...) == 0`; the dashboard shows the gauge.
    assert missing == ["fgaif_ppo_steps_total"]


def test_the_alerts_of_the_documentation_ask_for_metrics_that_exist(repository: Path) -> None:
    named = set(re.findall(r"ray_fgaif_[a-z_]+[a-z]", (repository / "docs" / "operations.md").read_text()))
    assert named and named <= set(exported())


def test_the_dashboard_can_be_imported_into_any_grafana() -> None:
    loaded = dashboard()
    assert [variable["name"] for variable in loaded["templating"]["list"]] == ["datasource", "session"]
    assert loaded["templating"]["list"][0]["type"] == "datasource"
    panels = loaded["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    used = [target["datasource"]["uid"] for panel in panels for target in panel.get("targets", ())]
    assert set(used) == {"${datasource}"}


def test_panels_lie_side_by_side() -> None:
    cells = [
        (x, y)
        for panel in dashboard()["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24
