"""Labelling again without asking again: thresholds, human labels, noise and a second verifier change labels, not what
the first verifier said of each fact.

P(yes) of every fact is in the rows. So where extraction and verification are those of the published `feedback/`, its
rows are labelled again and only what is missing (a second verification) is asked.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from actors.labelling.checks import CHECKS_FOLDER, CHECKS_SCHEMA, VerificationCheck
from fgaif_ray import storage
from fgaif_ray.audit.control_items.asked import CONTROL_ITEMS_FOLDER, CONTROL_ITEMS_SCHEMA
from fgaif_ray.config import Config
from fgaif_ray.progress import Progress, say
from fgaif_ray.records import REJECTED_SCHEMA, Feedback, feedback_schema
from fgaif_ray.storage import stages
from fgaif_ray.storage.stage_settings import verdict_key

if TYPE_CHECKING:
    from actors.labelling.verifier import Verification


def manifest_entries(config: Config) -> dict[str, Any]:
    """What a published `feedback/` says about the verdicts in it."""
    second = config.label.second_verifier
    return {
        "verdicts": stages.verdicts(config),
        "second_verdicts": None if second is None else verdict_key(second),
    }


def can_reuse(config: Config, stage: storage.Stage) -> bool:
    """Whether the published stage holds the verdicts that this run would ask for."""
    published = storage.read_manifest(stage.run, stage.name)
    return published is not None and published.get("verdicts") == manifest_entries(config)["verdicts"]


def loses_nothing(config: Config, stage: storage.Stage) -> bool:
    """Whether the published stage may be replaced unasked: every verdict in it comes into the new one."""
    published = storage.read_manifest(stage.run, stage.name)
    if published is None or not can_reuse(config, stage):
        return False
    return published.get("second_verdicts") in (None, manifest_entries(config)["second_verdicts"])


def reuse(config: Config, stage: storage.Stage, rejected_stage: storage.Stage, verification: "Verification") -> None:
    """Label the rows of the published stage again into the partial one; parts that are there already stay.

    Args:
        config: the configuration.
        stage: begun, and not complete.
        rejected_stage: begun, or complete.
        verification: labels the rows.
    """
    published = storage.read_manifest(stage.run, stage.name)
    if published is None or not can_reuse(config, stage):
        return
    second = manifest_entries(config)["second_verdicts"]
    both = second is not None and published.get("second_verdicts") == second
    labeller, schema = verification.labeller(both), feedback_schema(verification.types)
    with Progress("label again", published.get("rows"), "responses") as progress:
        for name, rows in _parts(stage.folder, stage.partial):
            given = [Feedback.from_row(row) for row in rows]
            labelled = [labeller.label(feedback.response, feedback.segments) for feedback in given]
            storage.write_part(stage.partial, [feedback.to_row() for feedback in labelled], schema, name)
            progress.advance(len(labelled))
    if not rejected_stage.is_complete():
        for name, rows in _parts(rejected_stage.folder, rejected_stage.partial):
            storage.write_part(rejected_stage.partial, rows, REJECTED_SCHEMA, name)
    checks, control_items = (
        (storage.join(stage.folder, folder), storage.join(stage.partial, folder))
        for folder in (CHECKS_FOLDER, CONTROL_ITEMS_FOLDER)
    )
    for name, rows in _parts(*checks):
        kept = [check for check in map(VerificationCheck.from_row, rows) if both or not check.second]
        if kept:
            storage.write_part(checks[1], [check.to_row() for check in kept], CHECKS_SCHEMA, name)
    for name, rows in _parts(*control_items):
        storage.write_part(control_items[1], rows, CONTROL_ITEMS_SCHEMA, name)
    say(f"label: the verdicts of {stage.folder} are labelled again, nothing is asked again.")


def _parts(source: str, target: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Names of the parts of one folder that another lacks, and their rows as plain values."""
    there = {part.rsplit("/", 1)[-1] for part in storage.list_parts(target)}
    for part in storage.list_parts(source):
        file = part.rsplit("/", 1)[-1]
        if file not in there:
            yield file.removeprefix("part-").removesuffix(".parquet"), storage.read_part(part)
