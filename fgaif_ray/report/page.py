"""The report page: metrics of a run's folder, put into one HTML file."""

from collections.abc import Sequence
from typing import Any, Final

from jinja2 import Environment
from markupsafe import Markup

from fgaif_ray import __version__, storage
from fgaif_ray.config import RunConfig
from fgaif_ray.evaluation import AFTER, BEFORE
from fgaif_ray.fact_types import style_variables, type_names
from fgaif_ray.pages import page_environment, page_style
from fgaif_ray.records import ABSENT, CLASS_NAMES, FACT_TYPES, HALLUCINATED
from fgaif_ray.report import EXAMPLES_FILE, SETTINGS_FILE, cost, formats, result
from fgaif_ray.report.judged import GROUPS, JudgedAnswer, JudgedExample, JudgedSegment
from fgaif_ray.report.summary import SUMMARY_FILE, package_versions
from fgaif_ray.report.training import read_metrics, training_charts
from fgaif_ray.report.verdicts import CLASS_SHORT, cards
from fgaif_ray.storage.stages import EVALUATION, FEEDBACK, POLICY, REPORT, REWARDS

SHOWN: Final = 4
"""Examples of a group that are visible at once; the others open with a click."""
MARKS: Final = dict(zip(CLASS_NAMES, ("\u00b7", "\u2713", "\u2717"), strict=True))
"""Marks of verdicts, for readers without colour."""


def build_report(run_dir: str) -> str:
    """Build the report of a run as one HTML document that loads nothing else and runs no script.

    Args:
        run_dir: folder of the run; ``evaluation/`` and ``report/`` have to be there (see ``jobs.report``); of the
            other stages, it shows what is there.

    Raises:
        FileNotFoundError: ``evaluation/metrics.json`` or the files of ``report/`` are not there.
    """
    evaluation = storage.read_json(storage.join(run_dir, EVALUATION, "metrics.json"))
    settings = storage.read_json(storage.join(run_dir, REPORT, SETTINGS_FILE))
    examples = [JudgedExample.from_json(one) for one in storage.read_json(storage.join(run_dir, REPORT, EXAMPLES_FILE))]
    labels = cost.read_optional(run_dir, FEEDBACK, "metrics.json")
    types = RunConfig(dir=run_dir, fact_types=settings.get("fact_types", FACT_TYPES)).types
    names = type_names(types)
    rewards = {kind: cost.read_optional(run_dir, REWARDS, kind, "metrics.json") or None for kind in names}
    policy = storage.join(run_dir, POLICY)
    steps = [line for line in read_metrics(policy) if line["step"] > 0]
    stages = cost.stages(run_dir)
    charts = training_charts(policy, names)
    environment = _environment()
    html: str = environment.get_template("report.html.j2").render(
        style=Markup(style_variables(types) + page_style(environment, "report.css")),
        title=settings["title"],
        settings=settings,
        evaluation=evaluation,
        headlines=result.headlines(evaluation),
        has_changes=result.has_changes(evaluation),
        worse=result.worse(evaluation),
        bars=result.bars(evaluation),
        table=result.table(evaluation),
        pope=result.pope(evaluation),
        labels=labels,
        control_items=(labels.get("canaries") or {}),
        label_cards=cards(labels.get("agreement") or {}, names),
        reward_cards=cards(rewards, names),
        charts=[chart for chart in charts if not chart["minor"]],
        minor_charts=[chart for chart in charts if chart["minor"]],
        published=cost.read_optional(run_dir, POLICY, storage.MANIFEST).get("best"),
        groups=_groups(examples, names),
        stages=stages,
        phases=cost.phases(steps),
        cost_tiles=cost.tiles(run_dir, stages, labels),
        ledger=cost.ledger(run_dir, labels),
        work=cost.work(run_dir, labels, steps),
        versions=cost.read_optional(run_dir, SUMMARY_FILE).get("versions") or package_versions(),
        fact_types=names,
        class_names=CLASS_NAMES,
        short_names=CLASS_SHORT,
        marks=MARKS,
        shown=SHOWN,
        version=__version__,
    )
    return html


def _environment() -> Environment:
    environment = page_environment("fgaif_ray.report")
    environment.filters |= {
        "share": formats.show_share,
        "number": formats.show_number,
        "signed": formats.show_signed,
        "count": formats.show_count,
        "clock": formats.show_clock,
    }
    return environment


def _groups(examples: Sequence[JudgedExample], types: Sequence[str]) -> list[dict[str, Any]]:
    """Group the examples, in the order of ``GROUPS``."""
    found = []
    for group in GROUPS:
        members = [_example(one, types) for one in examples if one.group == group]
        if members:
            found.append({"name": group, "examples": members})
    return found


def _example(example: JudgedExample, types: Sequence[str]) -> dict[str, Any]:
    return {
        "name": example.name,
        "picture": example.picture,
        "enlarged": example.enlarged,
        "prompt": example.prompt,
        "truth": example.truth,
        **{which: _side(example.of(which), types) for which in (BEFORE, AFTER)},
    }


def _side(answer: JudgedAnswer, types: Sequence[str]) -> dict[str, Any]:
    segments = [_segment(segment, answer.text, types) for segment in answer.segments]
    totals = [segment["reward"] for segment in segments if segment["reward"] is not None]
    return {
        "segments": segments,
        "cut": answer.finish_reason != "stop",
        "reward": sum(totals) if totals else None,
        "wrong": sum(segment["verdict"] == CLASS_NAMES[HALLUCINATED] for segment in segments),
    }


def _segment(segment: JudgedSegment, response: str, names: Sequence[str]) -> dict[str, Any]:
    labels, probabilities, rewards = segment.labels, segment.probabilities, segment.rewards
    predicted, verdicts = segment.predicted, segment.verdicts
    types = [
        {
            "name": kind,
            "truth": None if labels is None or kind not in labels else CLASS_NAMES[labels[kind]],
            "predicted": None if predicted is None else CLASS_NAMES[predicted[kind]],
            "verdict": CLASS_NAMES[verdicts.get(kind, ABSENT)],
            "probabilities": None if probabilities is None else probabilities[kind],
            "reward": None if rewards is None else rewards[kind],
            "disagree": predicted is not None and (labels or predicted).get(kind, predicted[kind]) != predicted[kind],
        }
        for kind in names
    ]
    return {
        "text": response[segment.start : segment.end].strip(),
        "verdict": CLASS_NAMES[max(verdicts.values(), default=ABSENT)],
        "types": types,
        "known": labels is not None,
        "scored": probabilities is not None,
        "reward": None if rewards is None else sum(rewards.values()),
    }
