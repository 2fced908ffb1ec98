"""The cost of a run: time per stage and phase, calls, tokens, money, memory. Unmeasured parts are left out."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fgaif_ray import storage
from fgaif_ray.report.formats import show_clock, show_count
from fgaif_ray.report.summary import TIMING_FILE, read_calls
from fgaif_ray.storage.stages import EVALUATION, FEEDBACK, RESPONSES

_STAGES: Final = ("images", "sample", "label", "train_rewards", "serve_rewards", "align", "evaluate", "report")
_TIMED: Final = (  # job, and the file that holds its seconds where no pipeline has taken the time
    ("sample", RESPONSES, storage.MANIFEST),
    ("label", FEEDBACK, "metrics.json"),
    ("evaluate", EVALUATION, "metrics.json"),
)
_PHASES: Final = ("rollout", "reward", "reference", "images", "update", "sync")
_LEDGER: Final = (
    ("calls", "calls"),
    ("answered", "answered"),
    ("failed", "failed"),
    ("retries", "repeated after a failure"),
    ("repairs", "asked again for a usable answer"),
    ("unusable", "answers that cannot be used"),
    ("cache_hits", "answers that were there already"),
    ("prompt_tokens", "prompt tokens"),
    ("completion_tokens", "completion tokens"),
)
Pairs = list[tuple[str, str]]


def read_optional(run_dir: str, *names: str) -> dict[str, Any]:
    """Read a JSON object of the run; empty where there is no file."""
    uri = storage.join(run_dir, *names)
    if not storage.exists(uri):
        return {}
    value: dict[str, Any] = storage.read_json(uri)
    return value


def stages(run_dir: str) -> list[dict[str, Any]]:
    """List the seconds of the stages in their order, with lengths in percent of the longest and shares of the whole."""
    timing: dict[str, float] = read_optional(run_dir, TIMING_FILE)
    for name, folder, file in _TIMED:
        seconds = read_optional(run_dir, folder, file).get("seconds")
        if seconds is not None:
            timing.setdefault(name, seconds)
    order = [*(name for name in _STAGES if name in timing), *(name for name in timing if name not in _STAGES)]
    return _lengths([(name, timing[name]) for name in order])


def phases(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean seconds of the phases of a step; the rest of the step is ``other``, unless phases overlap.

    Args:
        steps: the lines of ``metrics.jsonl``.
    """
    means = {}
    for name in (*_PHASES, "step"):
        found = [line[f"timing/{name}"] for line in steps if line.get(f"timing/{name}") is not None]
        if found:
            means[name] = sum(found) / len(found)
    whole = means.pop("step", None)
    rest = 0.0 if whole is None else whole - sum(means.values())
    return _lengths([*means.items(), *([("other", rest)] if means and rest > 0 else [])])


def _lengths(pairs: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    longest, whole = max((value for _, value in pairs), default=0.0), sum(value for _, value in pairs)
    return [
        {
            "name": name.replace("_", " "),
            "seconds": value,
            "width": 100 * value / longest if longest else 0.0,
            "share": value / whole if whole else 0.0,
        }
        for name, value in pairs
    ]


def ledger(run_dir: str, labels: Mapping[str, Any]) -> Pairs:
    """List the calls of fact extraction in words; kinds of calls that did not occur are left out."""
    counts = read_optional(run_dir, FEEDBACK, "ledger.json") or dict(labels.get("extraction") or {})
    if not counts:
        return []
    counts.setdefault("failed", counts.get("failed_calls", 0))
    pairs = [(title, show_count(counts[name])) for name, title in _LEDGER if counts.get(name)]
    unknown = counts.get("may_be_billed") or {}
    if unknown.get("calls"):
        pairs.append(("may be billed besides, calls", show_count(unknown["calls"])))
    if counts.get("money") is not None:
        pairs.append(("price of the answers", f"{counts['money']:.2f}\u202f{counts['currency']}"))
    return pairs


def work(run_dir: str, labels: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> Pairs:
    """Count what was sampled, labelled, learnt and asked."""
    pairs: Pairs = []
    sampled = storage.read_manifest(run_dir, RESPONSES) or {}
    if "rows" in sampled:
        pairs.append(("responses sampled", show_count(sampled["rows"])))
    if "rows" in labels:
        pairs.append(("responses labelled", show_count(labels["rows"])))
        pairs.append(("facts verified", show_count(sum((labels.get("facts") or {}).values()))))
    if steps:
        pairs.append(("Steps of alignment", show_count(len(steps))))
    for name, key in (("responses sampled", "count/responses"), ("pairs", "count/pairs"), ("tokens", "count/tokens")):
        total = sum(line.get(key) or 0 for line in steps)
        if total:
            pairs.append((f"alignment, {name}", show_count(total)))
    answered = storage.read_manifest(run_dir, EVALUATION) or {}
    if "rows" in answered:
        pairs.append(("answers in evaluation", show_count(answered["rows"])))
    return pairs


def tiles(run_dir: str, taken: Sequence[Mapping[str, Any]], labels: Mapping[str, Any]) -> list[dict[str, str]]:
    """Build the headline numbers of cost.

    Args:
        run_dir: folder of the run.
        taken: what ``stages`` gave.
        labels: ``feedback/metrics.json``.
    """
    found = []
    calls = read_calls(run_dir)
    if calls is not None:
        more = f" in {calls['calls']} calls" if calls["calls"] > 1 else ""
        found.append({"name": "Wall time", "value": show_clock(calls["seconds"]), "hint": f"all stages{more}"})
        found.append(
            {
                "name": "Peak memory",
                "value": f"{calls['peak_memory_gib']:.1f}\u202fGiB",
                "hint": "all processes of this machine",
            }
        )
    elif taken:
        whole = sum(stage["seconds"] for stage in taken)
        found.append({"name": "Wall time", "value": show_clock(whole), "hint": "sum of the stages"})
    counts = read_optional(run_dir, FEEDBACK, "ledger.json") or dict(labels.get("extraction") or {})
    tokens = counts.get("prompt_tokens", 0) + counts.get("completion_tokens", 0)
    if tokens:
        found.append({"name": "Extraction", "value": f"{show_count(tokens)}", "hint": "tokens"})
    if counts.get("money") is not None:
        found.append(
            {"name": "Price", "value": f"{counts['money']:.2f}\u202f{counts['currency']}", "hint": "of fact extraction"}
        )
    return found
