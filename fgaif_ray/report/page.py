"""The report page: figures of a run's folder, put into one HTML file."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fgaif_ray import __version__, storage
from fgaif_ray.evaluation import AFTER, BEFORE, GREEDY
from fgaif_ray.evaluation.pope import FIGURES as POPE_FIGURES
from fgaif_ray.evaluation.pope import STRATEGIES
from fgaif_ray.records import ABSENT, CLASS_NAMES, CONSISTENT, FACT_TYPES, HALLUCINATED
from fgaif_ray.report import EXAMPLES_FILE, REPORT_STAGE, SETTINGS_FILE
from fgaif_ray.report.charts import Mark, interval_chart, nice_ticks
from fgaif_ray.report.training import read_metrics, training_charts
from fgaif_ray.summary import SUMMARY_FILE, TIMING_FILE, package_versions, read_calls

LOWER_IS_BETTER, HIGHER_IS_BETTER, NEITHER = -1, 1, 0
_FIGURES: Final = (
    # group, name, path, sign of a good change, share or number
    ("Hallucinated sub-sentences", "overall", ("hallucination_rate", "overall"), LOWER_IS_BETTER, "share"),
    ("Hallucinated sub-sentences", "existence", ("hallucination_rate", "existence"), LOWER_IS_BETTER, "share"),
    ("Hallucinated sub-sentences", "attribute", ("hallucination_rate", "attribute"), LOWER_IS_BETTER, "share"),
    ("Hallucinated sub-sentences", "relation", ("hallucination_rate", "relation"), LOWER_IS_BETTER, "share"),
    ("Truth that is told", "coverage", ("coverage",), HIGHER_IS_BETTER, "share"),
    ("Truth that is told", "objects", ("coverage_objects",), HIGHER_IS_BETTER, "share"),
    ("Truth that is told", "attributes", ("coverage_attributes",), HIGHER_IS_BETTER, "share"),
    ("How much is said", "facts per response", ("facts_per_response",), NEITHER, "number"),
    ("How much is said", "words per response", ("words_per_response",), NEITHER, "number"),
    ("How well it is said", "repeated statements", ("repetition",), LOWER_IS_BETTER, "share"),
    ("How well it is said", "sub-sentences without a statement", ("unreadable",), LOWER_IS_BETTER, "share"),
    ("How well it is said", "responses cut at the limit", ("unfinished",), LOWER_IS_BETTER, "share"),
)
_TILES: Final = (
    ("Hallucination, overall", ("hallucination_rate", "overall"), LOWER_IS_BETTER, "share"),
    ("Coverage of the truth", ("coverage",), HIGHER_IS_BETTER, "share"),
    ("Facts per response", ("facts_per_response",), NEITHER, "number"),
    ("POPE F1", ("pope", "f1"), HIGHER_IS_BETTER, "share"),
)
_STAGES: Final = ("images", "sample", "label", "train_rewards", "serve_rewards", "align", "evaluate", "report")
_TIMED: Final = (  # job, and the file that holds its seconds where no pipeline has taken the time
    ("sample", "responses", storage.MANIFEST),
    ("label", "feedback", "metrics.json"),
    ("evaluate", "evaluation", "metrics.json"),
)


def build_report(run_dir: str) -> str:
    """The report of a run as one HTML document that loads nothing else.

    Args:
        run_dir: folder of the run; ``evaluation/`` and ``report/`` have to be there (see ``jobs.report``), of the
            other stages what is there is shown.

    Raises:
        FileNotFoundError: ``evaluation/metrics.json`` or the files of ``report/`` are not there.
    """
    evaluation = storage.read_json(storage.join(run_dir, "evaluation", "metrics.json"))
    settings = storage.read_json(storage.join(run_dir, REPORT_STAGE, SETTINGS_FILE))
    examples = storage.read_json(storage.join(run_dir, REPORT_STAGE, EXAMPLES_FILE))
    labels = _optional(run_dir, "feedback", "metrics.json") or {}
    rewards = {kind: _optional(run_dir, "rewards", kind, "metrics.json") for kind in FACT_TYPES}
    environment = Environment(
        loader=PackageLoader("fgaif_ray.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"share": show_share, "signed": show_signed, "count": show_count, "clock": show_clock}
    source = PackageLoader("fgaif_ray.report").get_source(environment, "report.css")[0]
    html: str = environment.get_template("report.html.j2").render(
        style=Markup(source),
        title=settings["title"],
        settings=settings,
        evaluation=evaluation,
        tiles=_tiles(evaluation),
        table=_table(evaluation),
        pope=_pope(evaluation),
        labels=labels,
        label_cards=_cards(labels.get("agreement") or {}),
        reward_cards=_cards(rewards),
        charts=training_charts(storage.join(run_dir, "policy")),
        examples=[_example(example) for example in examples],
        stages=_stages(run_dir),
        costs=_costs(run_dir, labels),
        versions=(_optional(run_dir, SUMMARY_FILE) or {}).get("versions") or package_versions(),
        fact_types=FACT_TYPES,
        class_names=CLASS_NAMES,
        short_names=dict(zip(CLASS_NAMES, ("absent", "consist.", "halluc."), strict=True)),
        version=__version__,
    )
    return html


def show_share(value: float | None, digits: int = 1) -> str:
    """A share as a percentage, or a dash."""
    return "\u2013" if value is None else f"{100 * value:.{digits}f}\u2009%"


def show_signed(value: float | None, digits: int = 2) -> str:
    """A number with its sign, or a dash."""
    # Adding zero turns a rounded -0.0 into 0.0.
    return "\u2013" if value is None else f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "\u2212")


def show_count(value: float | None) -> str:
    """A count with thousands apart, or a dash."""
    return "\u2013" if value is None else f"{round(value):,}".replace(",", "\u202f")


def show_clock(seconds: float) -> str:
    """A duration, e.g. ``"8 s"``, ``"3 min 20 s"``, ``"2 h 05 min"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _show(value: float | None, kind: str) -> str:
    if kind == "share":
        return show_share(value)
    return "\u2013" if value is None else f"{value:.2f}"


def _optional(run_dir: str, *names: str) -> dict[str, Any] | None:
    uri = storage.join(run_dir, *names)
    if not storage.exists(uri):
        return None
    value: dict[str, Any] = storage.read_json(uri)
    return value


def _look(tree: Any, path: Sequence[str]) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _change(before: float | None, after: float | None, good: int) -> dict[str, str]:
    """The relative change in words, and whether it is ``good``, ``bad`` or ``neutral``."""
    if before is None or after is None:
        return {"text": "\u2013", "kind": "neutral"}
    difference = after - before
    kind = "neutral" if good == NEITHER or difference == 0 else "good" if difference * good > 0 else "bad"
    if before == 0:
        return {"text": "\u2013" if difference == 0 else "from 0", "kind": kind}
    return {"text": f"{100 * difference / before:+.0f}\u2009%".replace("-", "\u2212"), "kind": kind}


def _tiles(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    tiles = []
    for name, path, good, kind in _TILES:
        before, after = (_look(evaluation[which], path) for which in (BEFORE, AFTER))
        if before is None and after is None:
            continue
        interval = _look(evaluation[AFTER], ("intervals", *path))
        tiles.append(
            {
                "name": name,
                "before": _show(before, kind),
                "after": _show(after, kind),
                "interval": None if interval is None else [_show(bound, kind) for bound in interval],
                "change": _change(before, after, good),
            }
        )
    return tiles


def _table(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the headline table; figures that nobody measured are left out."""
    tops = [
        bound
        for which in (BEFORE, AFTER)
        for _, _, path, _, kind in _FIGURES
        if kind == "share"
        for bound in [*(_look(evaluation[which], ("intervals", *path)) or []), _look(evaluation[which], path)]
        if bound is not None
    ]
    scale = nice_ticks(0.0, max(tops, default=1.0))[-1] or 1.0
    rows = []
    for group, name, path, good, kind in _FIGURES:
        sides = [_cell(evaluation[which], path, kind) for which in (BEFORE, AFTER)]
        greedy = [_cell(evaluation[which].get(GREEDY, {}), path, kind) for which in (BEFORE, AFTER)]
        if all(cell["value"] is None for cell in (*sides, *greedy)):
            continue
        marks = [
            Mark(cell["value"], cell["interval"], which) for cell, which in zip(sides, (BEFORE, AFTER), strict=True)
        ]
        rows.append(
            {
                "group": group,
                "name": name,
                "sampled": sides,
                "change": _change(sides[0]["value"], sides[1]["value"], good),
                "chart": interval_chart(marks, scale) if kind == "share" else None,
                "greedy": greedy,
                "greedy_change": _change(greedy[0]["value"], greedy[1]["value"], good),
            }
        )
    return rows


def _cell(figures: Mapping[str, Any], path: Sequence[str], kind: str) -> dict[str, Any]:
    value, interval = _look(figures, path), _look(figures, ("intervals", *path))
    bounds = None if interval is None else f"{_show(interval[0], kind)} to {_show(interval[1], kind)}"
    return {"value": value, "interval": interval, "text": _show(value, kind), "bounds": bounds}


def _pope(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    if _look(evaluation, (AFTER, "pope")) is None:
        return []
    rows = []
    for name in ("mean", *STRATEGIES):
        sides = [
            evaluation[which]["pope"] if name == "mean" else evaluation[which]["pope"]["splits"][name]
            for which in (BEFORE, AFTER)
        ]
        cells = [
            {
                "before": show_share(sides[0][figure]),
                "after": show_share(sides[1][figure]),
                "change": _change(
                    sides[0][figure], sides[1][figure], NEITHER if figure == "yes_ratio" else HIGHER_IS_BETTER
                ),
            }
            for figure in POPE_FIGURES
        ]
        rows.append({"name": name, "questions": sides[0].get("questions"), "cells": cells})
    return rows


def _cards(figures: Mapping[str, Mapping[str, Any] | None]) -> list[dict[str, Any]]:
    """One card per fact type with figures in the form of ``Agreement.to_dict``."""
    cards = []
    for kind in FACT_TYPES:
        found = figures.get(kind)
        if found is None:
            continue
        matrix = found["confusion"]
        cards.append(
            {
                "type": kind,
                "balanced_accuracy": found["balanced_accuracy"],
                "accuracy": found["accuracy"],
                "count": found["count"],
                "calibration_error": found.get("expected_calibration_error"),
                "epochs": len(found["curve"]) if "curve" in found else None,
                "seconds": found.get("seconds"),
                "rows": [
                    {
                        "name": name,
                        "cells": [
                            {"count": value, "share": value / sum(matrix[row]) if sum(matrix[row]) else 0.0}
                            for value in matrix[row]
                        ],
                        "precision": found["precision"][name],
                        "recall": found["recall"][name],
                    }
                    for row, name in enumerate(CLASS_NAMES)
                ],
            }
        )
    return cards


def _example(example: Mapping[str, Any]) -> dict[str, Any]:
    return dict(example) | {which: _side(example[which]) for which in (BEFORE, AFTER)}


def _side(side: Mapping[str, Any]) -> dict[str, Any]:
    segments = [_segment(segment, side["response"]) for segment in side["segments"]]
    totals = [segment["reward"] for segment in segments if segment["reward"] is not None]
    return {
        "segments": segments,
        "cut": side["finish_reason"] != "stop",
        "reward": sum(totals) if totals else None,
        "wrong": sum(segment["verdict"] == "hallucinated" for segment in segments),
    }


def _segment(segment: Mapping[str, Any], response: str) -> dict[str, Any]:
    """A sub-sentence with its verdict: the truth's where it is known, else the reward models'."""
    labels, probabilities, rewards = segment["labels"], segment["probabilities"], segment["rewards"]
    predicted = (
        {kind: max(range(len(CLASS_NAMES)), key=probabilities[kind].__getitem__) for kind in FACT_TYPES}
        if probabilities is not None
        else None
    )
    verdicts = labels or predicted or dict.fromkeys(FACT_TYPES, ABSENT)
    codes = list(verdicts.values())
    worst = HALLUCINATED if HALLUCINATED in codes else CONSISTENT if CONSISTENT in codes else ABSENT
    types = [
        {
            "name": kind,
            "truth": None if labels is None else CLASS_NAMES[labels[kind]],
            "predicted": None if predicted is None else CLASS_NAMES[predicted[kind]],
            "verdict": CLASS_NAMES[verdicts[kind]],
            "probabilities": None if probabilities is None else probabilities[kind],
            "reward": None if rewards is None else rewards[kind],
            "disagree": labels is not None and predicted is not None and labels[kind] != predicted[kind],
        }
        for kind in FACT_TYPES
    ]
    return {
        "text": response[segment["start"] : segment["end"]].strip(),
        "verdict": CLASS_NAMES[worst],
        "types": types,
        "reward": None if rewards is None else sum(rewards.values()),
    }


def _stages(run_dir: str) -> list[dict[str, Any]]:
    timing: dict[str, float] = _optional(run_dir, TIMING_FILE) or {}
    for name, folder, file in _TIMED:
        seconds = (_optional(run_dir, folder, file) or {}).get("seconds")
        if seconds is not None:
            timing.setdefault(name, seconds)
    longest = max(timing.values(), default=0.0)
    order = [*(name for name in _STAGES if name in timing), *(name for name in timing if name not in _STAGES)]
    return [
        {"name": name, "seconds": timing[name], "share": timing[name] / longest if longest else 0.0} for name in order
    ]


def _costs(run_dir: str, labels: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the run took, in words and figures; what nobody measured is left out."""
    costs: list[tuple[str, str]] = []
    sampled = storage.read_manifest(run_dir, "responses") or {}
    if "rows" in sampled:
        costs.append(("responses sampled", show_count(sampled["rows"])))
    if "rows" in labels:
        facts = sum((labels.get("facts") or {}).values())
        costs.append(("responses labelled", show_count(labels["rows"])))
        costs.append(("facts verified", show_count(facts)))
    for name, value in (labels.get("extraction") or {}).items():
        costs.append((f"extraction: {name.replace('_', ' ')}", show_count(value)))
    costs += _ppo_costs(run_dir)
    answered = storage.read_manifest(run_dir, "evaluation") or {}
    if "rows" in answered:
        costs.append(("evaluation: answers", show_count(answered["rows"])))
    calls = read_calls(run_dir)
    if calls is not None:
        costs.append(("peak memory", f"{calls['peak_memory_gib']:.1f} GiB"))
    return costs


def _ppo_costs(run_dir: str) -> list[tuple[str, str]]:
    lines = read_metrics(storage.join(run_dir, "policy"))
    if not lines:
        return []
    costs = [("PPO: steps", show_count(len(lines)))]
    for name, key in (("responses", "count/responses"), ("tokens", "count/tokens")):
        total = sum(line.get(key) or 0 for line in lines)
        if total:
            costs.append((f"PPO: sampled {name}", show_count(total)))
    return costs
