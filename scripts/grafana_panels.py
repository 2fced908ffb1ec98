"""What the dashboard is made of: PromQL over the metrics of actors/metrics, and panels on Grafana's grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from actors.metrics.instruments import Counter, Gauge, Histogram, Instrument

SESSION: Final = 'SessionName=~"$session"'
DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
WIDTH: Final = 24
HEIGHT: Final = 7
STAT_HEIGHT: Final = 4


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL and the legend of its series."""

    expression: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """A chart, or with ``stat`` the last value."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    width: int = 8
    stat: bool = False
    description: str = ""
    highest: float | None = None


def _selector(name: str, labels: dict[str, str]) -> str:
    conditions = [SESSION, *(f'{label}="{value}"' for label, value in labels.items())]
    return f"{name}{{{', '.join(conditions)}}}"


def _series(instrument: Instrument, labels: dict[str, str], part: str = "") -> str:
    """The series of a metric with these label values.

    Raises:
        ValueError: the metric has no such label or value.
    """
    for label, value in labels.items():
        if value not in instrument.labels.get(label, ()):
            raise ValueError(f"{instrument.name} has no {label}={value}")
    return _selector(f"ray_{instrument.name}{part}", labels)


def _grouped(function: str, inner: str, by: Sequence[str]) -> str:
    return f"{function} by ({', '.join(by)}) ({inner})" if by else f"{function}({inner})"


def _legend(by: Sequence[str], legend: str) -> str:
    return legend or " · ".join(f"{{{{{label}}}}}" for label in by)


def rate(counter: Counter, *by: str, legend: str = "", **labels: str) -> Query:
    """Growth per second, summed over processes."""
    inner = f"rate({_series(counter, labels)}[$__rate_interval])"
    return Query(_grouped("sum", inner, by), _legend(by, legend))


def total(counter: Counter, *by: str, legend: str = "", **labels: str) -> Query:
    """What has come together since the cluster started, summed over processes."""
    return Query(_grouped("sum", _series(counter, labels), by), _legend(by, legend))


def share(part: Query, whole: Query, legend: str) -> Query:
    """One query over another; both are grouped alike."""
    return Query(f"{part.expression} / {whole.expression}", legend)


def value(gauge: Gauge, *by: str, legend: str = "", function: str = "max", **labels: str) -> Query:
    """The last value; of several processes the largest, or what ``function`` makes of them."""
    return Query(_grouped(function, _series(gauge, labels), by), _legend(by, legend))


def quantile(histogram: Histogram, at: float, *by: str, legend: str = "", **labels: str) -> Query:
    """A quantile over all processes."""
    inner = f"rate({_series(histogram, labels, '_bucket')}[$__rate_interval])"
    return Query(
        f"histogram_quantile({at:g}, {_grouped('sum', inner, ('le', *by))})",
        legend or " · ".join([f"p{at * 100:g}", *(f"{{{{{label}}}}}" for label in by)]),
    )


def of_ray(expression: str, legend: str) -> Query:
    """PromQL over Ray's own metrics, with SESSION in each selector."""
    return Query(expression.replace("SESSION", SESSION), legend)


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    height = STAT_HEIGHT if panel.stat else HEIGHT
    defaults: dict[str, Any] = {"unit": panel.unit, "min": None if panel.unit == "short" else 0}
    if panel.highest is not None:
        defaults["max"] = panel.highest
    if not panel.stat:
        defaults["custom"] = {"lineWidth": 1, "fillOpacity": 8, "showPoints": "never", "spanNulls": 60000}
    options: dict[str, Any] = (
        {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "none", "textMode": "value_and_name"}
        if panel.stat
        else {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
    )
    return {
        "id": number,
        "type": "stat" if panel.stat else "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": height},
        "fieldConfig": {
            "defaults": {key: known for key, known in defaults.items() if known is not None},
            "overrides": [],
        },
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": DATASOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
            }
            for place, query in enumerate(panel.queries)
        ],
    }


def panels_of(rows: Mapping[str, Sequence[Panel]]) -> list[dict[str, Any]]:
    """Rows of panels, by title, as Grafana lays them out."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, members in rows.items():
        row = {"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "panels": []}
        panels.append(row | {"gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}})
        x, y = 0, y + 1
        for panel in members:
            if x + panel.width > WIDTH:
                x, y = 0, y + HEIGHT
            panels.append(_panel(panel, len(panels) + 1, x, y))
            x += panel.width
        y += STAT_HEIGHT if members[0].stat else HEIGHT
    return panels
