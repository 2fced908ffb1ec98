"""Stages that the runs of an experiment have in common, found from their configurations alone.

Runs whose planned keys of a stage are equal (``storage.planned_stages``) do the stage once. The keys serve to plan and
to order; a run takes a finished stage from another one only where the fingerprints are equal.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fgaif_ray.experiments.variants import Run
from fgaif_ray.storage.planned_stages import BEFORE, PLANNED, VERDICTS, planned_keys
from fgaif_ray.storage.stages import EVALUATION, FEEDBACK, POLICY, RESPONSES, REWARDS

JOB_OF: Final = {
    RESPONSES: "sample",
    VERDICTS: "label",
    FEEDBACK: "label again",
    REWARDS: "train_rewards",
    POLICY: "align",
    BEFORE: "evaluate before",
    EVALUATION: "evaluate",
}


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """The stages that a run does itself and those that it takes from earlier runs, when nothing is done yet."""

    run: Run
    own: tuple[str, ...]
    """Names of ``PLANNED``."""
    shared: Mapping[str, str]
    """Stage -> name of the run that does it."""


def plan_runs(runs: Sequence[Run], known: Mapping[str, str] | None = None) -> list[PlannedRun]:
    """Plan which run does which stage when the runs go one after another.

    Args:
        runs: in their order.
        known: key of a stage -> the run of another experiment that has it.
    """
    owners = dict(known or {})
    planned = []
    for run in runs:
        own, shared = [], {}
        for stage, key in planned_keys(run.config).items():
            if stage == FEEDBACK and VERDICTS in own:
                owners[key] = run.name
                continue  # labels come with the verdicts
            if key in owners:
                shared[stage] = owners[key]
            else:
                owners[key] = run.name
                own.append(stage)
        planned.append(PlannedRun(run, tuple(own), shared))
    return planned


def plan_lines(planned: Sequence[PlannedRun], timing: Mapping[str, float] | None, finished: Sequence[str]) -> list[str]:
    """Format the plan for people: a line per run, then the work.

    Args:
        planned: what ``plan_runs`` returned.
        timing: seconds of jobs in an earlier run of this configuration; without them nothing is estimated.
        finished: names of the runs that are done.
    """
    width = max(len(one.run.name) for one in planned)
    lines = []
    work: Counter[str] = Counter()
    for one in planned:
        if one.run.name in finished:
            lines.append(f"{one.run.name:<{width}}  done")
            continue
        work.update(one.own)
        own = ", ".join(JOB_OF[stage] for stage in one.own) or "nothing"
        by_owner: dict[str, list[str]] = {}
        for stage, owner in one.shared.items():
            by_owner.setdefault(owner, []).append(stage)
        shared = "; ".join(f"{', '.join(stages)} of {owner}" for owner, stages in by_owner.items())
        lines.append(f"{one.run.name:<{width}}  runs {own}" + (f"; takes {shared}" if shared else ""))
    lines.append("")
    amounts = [f"{JOB_OF[stage]} {work[stage]} x" for stage in PLANNED if work[stage]]
    lines.append(f"Work: {', '.join(amounts) or 'none'}")
    if timing and work:
        seconds = sum(count * _seconds(stage, timing) for stage, count in work.items())
        lines.append(f"About {seconds / 3600:.1f} h one after another, by the times of an earlier run.")
    elif work:
        lines.append("No run of this configuration has been timed yet: how long it takes is unknown.")
    return lines


def _seconds(stage: str, timing: Mapping[str, float]) -> float:
    """Return the seconds of a stage; both evaluations share theirs, and labelling again takes next to nothing."""
    if stage == FEEDBACK:
        return 0.0
    if stage in (BEFORE, EVALUATION):
        return timing.get("evaluate", 0.0) / 2
    if stage == POLICY:
        return timing.get("align", 0.0) + timing.get("serve_rewards", 0.0)
    return timing.get(JOB_OF[stage], 0.0)
