"""What Ray exports to Prometheus, scraped from the node's own endpoint."""

import re
import time
import urllib.request
from collections import defaultdict
from collections.abc import Collection, Iterable

import ray

from actors.metrics.instruments import Histogram, Instrument

PATIENCE_S = 60
SAMPLE = re.compile(r"^(\w+)\{(.*)\} (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Samples = dict[str, list[tuple[dict[str, str], float]]]


def exported_names(metric: Instrument) -> tuple[str, ...]:
    """The names of a metric's series in Prometheus."""
    parts = ("_bucket", "_sum", "_count") if isinstance(metric, Histogram) else ("",)
    return tuple(f"ray_{metric.name}{part}" for part in parts)


def scrape() -> Samples:
    """The samples of every node of the connected Ray by name, each with its labels."""
    found: Samples = defaultdict(list)
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read().decode()
        for name, labels, value in SAMPLE.findall(text):
            found[name].append((dict(LABEL.findall(labels)), float(value)))
    return found


def of_workers(samples: Samples, workers: Collection[str]) -> Samples:
    """The samples of some processes: counters of all that have ever run in a cluster stay."""
    own = {
        name: [(labels, value) for labels, value in found if labels.get("WorkerId") in workers]
        for name, found in samples.items()
    }
    return {name: found for name, found in own.items() if found}


def scrape_until(names: Iterable[str], workers: Collection[str] | None = None) -> Samples:
    """The samples of these processes, or of all, once all names are among them; they are told every ten seconds."""
    wanted, until = set(names), time.monotonic() + PATIENCE_S
    while True:
        found = scrape() if workers is None else of_workers(scrape(), workers)
        if wanted <= set(found):
            return found
        assert time.monotonic() < until, f"not exported: {sorted(wanted - set(found))}"
        time.sleep(1)


def total(samples: Samples, name: str, **labels: str) -> float:
    """Sum of the samples with these labels."""
    return sum(value for found, value in samples[name] if labels.items() <= found.items())
