"""What Ray exports to Prometheus, scraped from the node's own endpoint."""

import re
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterable

import ray

PATIENCE_S = 60
SAMPLE = re.compile(r"^(\w+)\{(.*)\} (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Samples = dict[str, list[tuple[dict[str, str], float]]]


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


def scrape_until(names: Iterable[str]) -> Samples:
    """The samples once all of these names are there; processes tell them every ten seconds."""
    wanted, until = set(names), time.monotonic() + PATIENCE_S
    while True:
        found = scrape()
        if wanted <= set(found):
            return found
        assert time.monotonic() < until, f"not exported: {sorted(wanted - set(found))}"
        time.sleep(1)


def total(samples: Samples, name: str, **labels: str) -> float:
    """Sum of the samples with these labels."""
    return sum(value for found, value in samples[name] if labels.items() <= found.items())
