"""What a run of an experiment takes from other runs, and how a finished one is told.

A stage is taken by a copy, only where its fingerprint is the one that the run's own job expects. What labels and
evaluation reuse (verdicts, answers of the policy before alignment) is put where these jobs look for it.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.experiments.variants import NAMES, TRUTH_ANSWERS_FILE, Run
from fgaif_ray.feedback.label_sources import feedback_stages
from fgaif_ray.progress import say
from fgaif_ray.records import RESPONSE_COLUMNS, Response
from fgaif_ray.report.summary import MEMORY_FILE, TIMING_FILE
from fgaif_ray.rewards.files import published_versions
from fgaif_ray.storage import stages
from fgaif_ray.storage.planned_stages import VERDICTS, planned_keys
from fgaif_ray.storage.stages import EVALUATION, FEEDBACK, FEEDBACK_REJECTED, POLICY, RESPONSES, REWARDS

if TYPE_CHECKING:
    from fgaif_ray.sources import ImageSets

MARKER_FILE: Final = "experiment-run.json"
"""In the folder of a finished run: the keys of its stages, and the fingerprint of its evaluation."""
TIMED_JOBS: Final = {
    RESPONSES: ("sample",),
    FEEDBACK: ("label",),
    REWARDS: ("train_rewards",),
    POLICY: ("serve_rewards", "align"),
    EVALUATION: ("evaluate",),
}


def other_folders(base: Config) -> list[str]:
    """The run folders of all experiments of a base configuration that are there."""
    roots = [storage.join(base.run.dir, name) for name in NAMES]
    variants = [storage.join(root, name) for root in roots for name in storage.list_folders(root)]
    return [
        storage.join(variant, name)
        for variant in variants
        for name in storage.list_folders(variant)
        if name.startswith("seed-")
    ]


def read_marker(folder: str) -> dict[str, Any] | None:
    """The marker of a finished run, None for one that is not."""
    uri = storage.join(folder, MARKER_FILE)
    if not storage.exists(uri):
        return None
    marker: dict[str, Any] = storage.read_json(uri)
    manifest = storage.read_manifest(folder, EVALUATION)
    return marker if manifest is not None and manifest["fingerprint"] == marker[EVALUATION] else None


def is_finished(run: Run) -> bool:
    """Whether a run is done with its present configuration."""
    marker = read_marker(run.folder)
    return marker is not None and marker["keys"] == planned_keys(run.config)


def mark_finished(run: Run) -> None:
    """Leave the marker in the folder of a run that is done."""
    manifest = stages.require(run.folder, EVALUATION)
    marker = {"keys": planned_keys(run.config), EVALUATION: manifest["fingerprint"]}
    storage.write_json(storage.join(run.folder, MARKER_FILE), marker)


def adopt(run: Run, donors: Sequence[str], sets: "ImageSets") -> str | None:
    """Copy what other runs have finished into a run; what the run itself has stays.

    Args:
        run: the run.
        donors: run folders to take from.
        sets: the run's images.

    Returns:
        The first of ``PLANNED`` that the run has to do itself, or None.

    Raises:
        UserError: a file that the configuration names cannot be used, or a finished stage of other settings would be
            replaced unasked.
    """
    donors = [folder for folder in donors if folder != run.folder]
    _adopt_answers_before(run, donors, sets)
    for name, stage in _expected_stages(run, sets):
        if stage.is_complete():
            continue
        donor = _find(donors, name, "fingerprint", stage.fingerprint)
        if donor is not None:
            _require_replaceable(run, stage)
            if name == FEEDBACK:
                storage.copy_stage(donor, run.folder, FEEDBACK_REJECTED, overwrite=True)
            storage.copy_stage(donor, run.folder, name, overwrite=True)
            _adopt_figures(run, donor, name)
            say(f"{run.name}: {name} of {donor}")
            continue
        if name != FEEDBACK:
            return name
        verdicts = stages.verdicts(run.config)
        if _find([run.folder], FEEDBACK, "verdicts", verdicts) is None:
            donor = _find(donors, FEEDBACK, "verdicts", verdicts)
            if donor is None:
                return VERDICTS
            _require_replaceable(run, stage)
            for folder in (FEEDBACK_REJECTED, FEEDBACK):
                storage.copy_stage(donor, run.folder, folder, overwrite=True)
            say(f"{run.name}: verdicts of {donor}, to be labelled again")
        return FEEDBACK
    return None


def _require_replaceable(run: Run, stage: storage.Stage) -> None:
    if not run.config.run.overwrite:
        stage.require_replaceable()


def _expected_stages(run: Run, sets: "ImageSets") -> Iterator[tuple[str, storage.Stage]]:
    """The stages of a run in order; the one after a stage that is not complete is not known."""
    config = run.config
    stage = stages.responses(config, sets)
    yield RESPONSES, stage
    if not stage.is_complete():
        return
    if run.variant.truth_labels:
        _write_truth_answers(run, stage.fingerprint)
    stage, _ = feedback_stages(config)
    yield FEEDBACK, stage
    if not stage.is_complete():
        return
    stage = stages.rewards(config)
    yield REWARDS, stage
    if not stage.is_complete():
        return
    stage = stages.policy(config, sets, published_versions(config))
    yield POLICY, stage
    if stage.is_complete():
        yield EVALUATION, stages.evaluation(config, sets)


def _find(folders: Sequence[str], stage: str, entry: str, value: str) -> str | None:
    """The first run folder whose published stage has this entry in its manifest."""
    for folder in folders:
        manifest = storage.read_manifest(folder, stage)
        if manifest is not None and manifest.get(entry) == value:
            return folder
    return None


def _adopt_answers_before(run: Run, donors: Sequence[str], sets: "ImageSets") -> None:
    """Put an evaluation of another aligned policy where ``jobs.evaluate`` finds the answers of the one before."""
    key = stages.answers_before(run.config, sets)
    begun = storage.exists(storage.join(run.folder, f"{EVALUATION}.partial"))
    own = storage.read_manifest(run.folder, EVALUATION)
    if own is not None and storage.COPIED_FROM not in own and not run.config.run.overwrite:
        return  # whether it may be replaced is asked when it would be
    if begun or _find([run.folder], EVALUATION, "before", key) is not None:
        return
    donor = _find(donors, EVALUATION, "before", key)
    if donor is not None:
        storage.copy_stage(donor, run.folder, EVALUATION, overwrite=True)


def _adopt_figures(run: Run, donor: str, stage: str) -> None:
    """What a stage took where it was done."""
    for file in (TIMING_FILE, MEMORY_FILE):
        theirs, ours = (_read_figures(folder, file) for folder in (donor, run.folder))
        found = {job: theirs[job] for job in TIMED_JOBS[stage] if job in theirs}
        if found:
            storage.write_json(storage.join(run.folder, file), {**ours, **found})


def _read_figures(folder: str, file: str) -> dict[str, float]:
    uri = storage.join(folder, file)
    return dict(storage.read_json(uri)) if storage.exists(uri) else {}


def _write_truth_answers(run: Run, responses: str) -> None:
    """Write the labels that the truth gives these responses, unless they are there."""
    from fgaif_ray.experiments.truth import truth_answers
    from fgaif_ray.sources import load_truth

    uri = storage.join(run.folder, TRUTH_ANSWERS_FILE)
    audit = f"truth-{responses}"
    if storage.exists(uri) and storage.read_json(uri)["audit"] == audit:
        return
    truth = load_truth(run.config)
    if truth is None:
        raise UserError("The truth cannot label these images: leave the variant out with --variants.")
    rows = map(Response.from_row, storage.read_rows(storage.join(run.folder, RESPONSES), RESPONSE_COLUMNS))
    storage.write_bytes(uri, truth_answers(rows, truth, audit))
