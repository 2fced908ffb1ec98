"""The metrics of a finished run, read from what its stages measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fgaif_ray import storage
from fgaif_ray.evaluation import AFTER, BEFORE
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.report.summary import MEMORY_FILE, TIMING_FILE
from fgaif_ray.rewards.kinds import COARSE
from fgaif_ray.statistics.agreement import balanced_accuracy_present
from fgaif_ray.storage import stages

LOWER, HIGHER, NEITHER = -1, 1, 0
"""Which change of a metric is good."""
REWARD_ACCURACY_FILE: Final = "reward-accuracy.json"
"""The file of ``reward_accuracy`` about a run's reward models."""
PAID_JOBS: Final = ("label", "train_rewards", "align")
"""The jobs whose cost differs between fine-grained and coarse feedback."""
_PER_POINT: Final = ("calls", "tokens", "seconds", "money")
_PRESENT: Final = ", consistent or hallucinated"
"""Metrics without the class of absent facts, which is easy to see and lifts the mean of three."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of a run.

    Example: ``Metric("coverage", "coverage", "said", HIGHER, "share")``
    """

    name: str
    title: str
    group: str
    good: int
    kind: str
    """``share``, ``number``, ``count``, ``seconds``, ``gib`` or ``money``."""


METRICS: Final = (
    *(Metric(f"hallucination.{kind}", kind, "hallucination", LOWER, "share") for kind in ("overall", *FACT_TYPES)),
    Metric("hallucination.before", "overall, before alignment", "hallucination", NEITHER, "share"),
    Metric("removed", "removed, overall", "hallucination", HIGHER, "share"),
    Metric("coverage", "coverage of the truth", "said", HIGHER, "share"),
    Metric("coverage.before", "coverage before alignment", "said", NEITHER, "share"),
    Metric("facts_per_response", "facts per response", "said", NEITHER, "number"),
    *(Metric(f"{kind}_per_response", f"of them {kind}", "said", NEITHER, "number") for kind in FACT_TYPES),
    Metric("facts_per_response.before", "facts before alignment", "said", NEITHER, "number"),
    Metric("words_per_response", "words per response", "said", NEITHER, "number"),
    Metric("repetition", "repeated statements", "said", LOWER, "share"),
    Metric("repetition.before", "repeated statements before alignment", "said", NEITHER, "share"),
    Metric("pope.f1", "F1", "pope", HIGHER, "share"),
    Metric("pope.accuracy", "accuracy", "pope", HIGHER, "share"),
    *(Metric(f"labels.{kind}", kind, "labels", HIGHER, "share") for kind in FACT_TYPES),
    *(Metric(f"labels_present.{kind}", f"{kind}{_PRESENT}", "labels", HIGHER, "share") for kind in FACT_TYPES),
    *(Metric(f"rewards.{kind}", kind, "rewards", HIGHER, "share") for kind in (*FACT_TYPES, "mean")),
    *(
        Metric(f"rewards_present.{kind}", f"{kind}{_PRESENT}", "rewards", HIGHER, "share")
        for kind in (*FACT_TYPES, "mean")
    ),
    Metric("rewards.response", "one verdict per response", "rewards", HIGHER, "share"),
    *(Metric(f"rewards_after.{kind}", kind, "rewards after", HIGHER, "share") for kind in (*FACT_TYPES, "mean")),
    *(
        Metric(f"rewards_after_present.{kind}", f"{kind}{_PRESENT}", "rewards after", HIGHER, "share")
        for kind in (*FACT_TYPES, "mean")
    ),
    Metric("rewards_after.response", "one verdict per response", "rewards after", HIGHER, "share"),
    *(Metric(f"held_out_present.{kind}", kind, "held out", HIGHER, "share") for kind in (*FACT_TYPES, "mean")),
    Metric("left.held_out", "reward accuracy above chance, on held-out labels", "left", NEITHER, "share"),
    Metric("left.rewards", "the same against the truth, before alignment", "left", NEITHER, "share"),
    Metric("left.rewards_after", "and after alignment", "left", NEITHER, "share"),
    Metric("left.removed", "hallucination removed, overall", "left", NEITHER, "share"),
    *(
        Metric(f"seconds.{job}", job, "seconds", LOWER, "seconds")
        for job in ("label", "train_rewards", "align", "total")
    ),
    *(Metric(f"memory.{job}", job, "memory", LOWER, "gib") for job in ("train_rewards", "serve_rewards", "align")),
    Metric("calls.extraction", "extraction calls", "cost", LOWER, "count"),
    Metric("tokens.extraction", "extraction tokens", "cost", LOWER, "count"),
    Metric("calls.verification", "facts verified", "cost", LOWER, "count"),
    Metric("tokens.verification", "verification prompt tokens", "cost", LOWER, "count"),
    Metric("tokens.align", "tokens sampled in PPO", "cost", LOWER, "count"),
    Metric("money", "money for extraction", "cost", LOWER, "money"),
    Metric("per_point.calls", "calls", "per point", LOWER, "number"),
    Metric("per_point.tokens", "tokens", "per point", LOWER, "count"),
    Metric("per_point.seconds", "seconds", "per point", LOWER, "seconds"),
    Metric("per_point.money", "money", "per point", LOWER, "money"),
)
GROUP_TITLES: Final = {
    "hallucination": "Hallucinated segments",
    "said": "What is said",
    "pope": "POPE",
    "labels": "Labels that were trained on: balanced accuracy against the truth",
    "rewards": "Reward models: balanced accuracy against the truth, on the images of the evaluation",
    "rewards after": "Reward models: the same on what the aligned policy says, lower where it exploits them",
    "held out": "Reward models: balanced accuracy of consistent or hallucinated on held-out labels",
    "left": "What is left of what the reference has",
    "seconds": "Wall time",
    "memory": "Peak memory",
    "cost": "What labelling and PPO took",
    "per point": "Per percentage point of hallucination removed",
}


@dataclass(frozen=True, slots=True)
class RunMetric:
    """A value, and its interval over images where the evaluation has one."""

    value: float
    interval: tuple[float, float] | None = None


def read_figures(run_dir: str) -> dict[str, RunMetric]:
    """Read the metrics of a finished run by the names of METRICS; unmeasured ones are left out.

    Raises:
        FileNotFoundError: the run has not been evaluated.
    """
    evaluation = storage.read_json(storage.join(run_dir, stages.EVALUATION, "metrics.json"))
    found: dict[str, RunMetric] = {}
    after, before = evaluation[AFTER], evaluation[BEFORE]
    for kind in ("overall", *FACT_TYPES):
        _add(found, f"hallucination.{kind}", after, ("hallucination_rate", kind))
    _add(found, "hallucination.before", before, ("hallucination_rate", "overall"))
    typed = [f"{kind}_per_response" for kind in FACT_TYPES]
    for name in ("coverage", "facts_per_response", *typed, "words_per_response", "repetition"):
        _add(found, name, after, (name,))
    for name in ("coverage", "facts_per_response", "repetition"):
        _add(found, f"{name}.before", before, (name,))
    for name in ("f1", "accuracy"):
        _add(found, f"pope.{name}", after, ("pope", name))
    if "hallucination.overall" in found and "hallucination.before" in found:
        found["removed"] = RunMetric(found["hallucination.before"].value - found["hallucination.overall"].value)
    labels = _optional(run_dir, stages.FEEDBACK, "metrics.json")
    for kind in FACT_TYPES:
        _add(found, f"labels.{kind}", labels, ("agreement", kind, "balanced_accuracy"))
        _add(found, f"labels_present.{kind}", labels, ("agreement", kind, "balanced_accuracy_present"))
    found |= _reward_figures("held_out", _held_out(run_dir))
    accuracy = _optional(run_dir, REWARD_ACCURACY_FILE)
    found |= _reward_figures("rewards", accuracy.get(BEFORE, {}))
    found |= _reward_figures("rewards_after", accuracy.get(AFTER, {}))
    timing = _optional(run_dir, TIMING_FILE)
    for job in PAID_JOBS:
        _add(found, f"seconds.{job}", timing, (job,))
    if timing:
        found["seconds.total"] = RunMetric(sum(timing.values()))
    memory = _optional(run_dir, MEMORY_FILE)
    for job in ("train_rewards", "serve_rewards", "align"):
        _add(found, f"memory.{job}", memory, (job,))
    return found | _cost_figures(run_dir, labels, found)


def _held_out(run_dir: str) -> dict[str, Any]:
    """Return the reward models' own metrics by fact type; none of a model with one verdict per response."""
    found = {kind: _optional(run_dir, stages.REWARDS, kind, "metrics.json") for kind in FACT_TYPES}
    return {kind: one for kind, one in found.items() if one.get("granularity") == "segment"}


def _reward_figures(name: str, accuracy: Mapping[str, Any]) -> dict[str, RunMetric]:
    found: dict[str, RunMetric] = {}
    if COARSE in accuracy:
        _add(found, f"{name}.response", accuracy, (COARSE, "balanced_accuracy"))
        return found
    for kind in FACT_TYPES:
        _add(found, f"{name}.{kind}", accuracy, (kind, "balanced_accuracy"))
        present = balanced_accuracy_present(accuracy[kind]["confusion"]) if kind in accuracy else None
        if present is not None:
            found[f"{name}_present.{kind}"] = RunMetric(present)
    for prefix in (name, f"{name}_present"):
        values = [found[f"{prefix}.{kind}"].value for kind in FACT_TYPES if f"{prefix}.{kind}" in found]
        if len(values) == len(FACT_TYPES):
            found[f"{prefix}.mean"] = RunMetric(sum(values) / len(FACT_TYPES))
    return found


def _cost_figures(run_dir: str, labels: Mapping[str, Any], known: Mapping[str, RunMetric]) -> dict[str, RunMetric]:
    """Return calls, tokens and money, in total and per point of hallucination removed."""
    found: dict[str, RunMetric] = {}
    asked = labels.get("extraction") or {}
    if "calls" in asked:
        found["calls.extraction"] = RunMetric(asked["calls"])
        found["tokens.extraction"] = RunMetric(asked["prompt_tokens"] + asked["completion_tokens"])
    if labels.get("facts"):
        found["calls.verification"] = RunMetric(sum(labels["facts"].values()))
    _add(found, "tokens.verification", labels, ("prefix_cache", "prompt_tokens"))
    _add(found, "money", _optional(run_dir, stages.FEEDBACK, "ledger.json"), ("money",))
    uri = storage.join(run_dir, stages.POLICY, "metrics.jsonl")
    if storage.exists(uri):
        from fgaif_ray.rl.run_log import read_lines

        steps = [line for line in read_lines(uri) if "count/responses" in line]  # preferences are sampled before
        found["tokens.align"] = RunMetric(sum(line.get("count/tokens") or 0 for line in steps))
    points = 100 * known["removed"].value if "removed" in known else 0.0
    if points > 0:
        sums = {
            "calls": [found[name].value for name in ("calls.extraction", "calls.verification") if name in found],
            "tokens": [figure.value for name, figure in found.items() if name.startswith("tokens.")],
            "seconds": [known[name].value for name in (f"seconds.{job}" for job in PAID_JOBS) if name in known],
            "money": [found["money"].value] if "money" in found else [],
        }
        found |= {f"per_point.{name}": RunMetric(sum(sums[name]) / points) for name in _PER_POINT if sums[name]}
    return found


def _optional(run_dir: str, *names: str) -> dict[str, Any]:
    uri = storage.join(run_dir, *names)
    return dict(storage.read_json(uri)) if storage.exists(uri) else {}


def _look(tree: Any, path: Sequence[str]) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _add(found: dict[str, RunMetric], name: str, tree: Mapping[str, Any], path: Sequence[str]) -> None:
    value, interval = _look(tree, path), _look(tree, ("intervals", *path))
    if isinstance(value, int | float):
        found[name] = RunMetric(float(value), None if interval is None else (float(interval[0]), float(interval[1])))
