"""What runs of an experiment take from each other, and how the job goes through them."""

import json
from pathlib import Path
from typing import Any

import pytest

from actors.labelling.reuse import manifest_entries
from fgaif_ray import storage
from fgaif_ray.audit.human import read_answers
from fgaif_ray.config import Config, load_config
from fgaif_ray.errors import UserError
from fgaif_ray.experiments.adopt import adopt, is_finished, mark_finished, other_folders
from fgaif_ray.experiments.sharing import EVALUATION, FEEDBACK, RESPONSES, REWARDS, VERDICTS
from fgaif_ray.experiments.variants import TRUTH_ANSWERS_FILE, Run, build_experiment, build_runs
from fgaif_ray.feedback.label_sources import feedback_stages
from fgaif_ray.records import FACT_TYPES, REJECTED_SCHEMA, RESPONSES_SCHEMA, feedback_schema
from fgaif_ray.sources import ImageSets, prepare_images
from fgaif_ray.storage import stages
from fgaif_ray.storage.planned_stages import planned_keys
from jobs import label
from jobs.experiment import run as run_experiment

COUNTS = ("data.sample_images=4", "data.align_images=4", "data.evaluate_images=4")
METRICS = {
    "before": {"hallucination_rate": {"overall": 0.4}},
    "after": {"hallucination_rate": {"overall": 0.2}, "coverage": 0.7},
}


@pytest.fixture
def base(tmp_path: Path) -> Config:
    return load_config("configs/shapes.yaml", [f"run.dir={tmp_path}/run", *COUNTS])


def runs_of(base: Config, name: str, seeds: tuple[int, ...] = (0,)) -> dict[str, Run]:
    return {run.name: run for run in build_runs(build_experiment(name, base), base, seeds)}


def respond(run: Run) -> ImageSets:
    """Publish the responses that a run's own job would, with a text of our own."""
    sets = prepare_images(run.config)
    stage = stages.responses(run.config, sets)
    stage.begin()
    rows = [
        {
            "sample_id": str(index), "image": image, "image_sha256": "", "prompt": "", "response": "There is a star.",
            "token_ids": [1], "finish_reason": "stop", "model": "policy",
        }
        for index, (image,) in enumerate(sets.sample)
    ]  # fmt: skip
    storage.write_part(stage.partial, rows, RESPONSES_SCHEMA)
    stage.publish({"rows": len(rows)})
    return sets


def give_feedback(run: Run) -> None:
    for stage, schema in zip(feedback_stages(run.config), (feedback_schema(FACT_TYPES), REJECTED_SCHEMA), strict=True):
        stage.begin()
        storage.write_part(stage.partial, [], schema)
        stage.publish(manifest_entries(run.config))


def finish(run: Run) -> None:
    """What a run that is done leaves behind, as far as the job looks at it."""
    stage = storage.Stage(run.folder, EVALUATION, "fingerprint")
    stage.begin()
    storage.write_json(storage.join(stage.partial, "metrics.json"), METRICS)
    stage.publish({"before": stages.answers_before(run.config, prepare_images(run.config))})
    mark_finished(run)


def fingerprint(run: Run, stage: str) -> Any:
    manifest = storage.read_manifest(run.folder, stage)
    return None if manifest is None else manifest["fingerprint"]


def test_equal_keys_mean_equal_fingerprints_of_the_jobs(base: Config) -> None:
    runs = runs_of(base, "ablation")
    one, other = runs["full/seed-0"], runs["wo-object/seed-0"]
    for run in (one, other):
        respond(run)
        give_feedback(run)
    assert planned_keys(one.config)[REWARDS] == planned_keys(other.config)[REWARDS]
    assert fingerprint(one, RESPONSES) == fingerprint(other, RESPONSES)
    assert fingerprint(one, FEEDBACK) == fingerprint(other, FEEDBACK)
    assert stages.rewards(one.config).fingerprint == stages.rewards(other.config).fingerprint


def test_a_run_takes_the_stages_that_another_one_has(base: Config) -> None:
    runs = runs_of(base, "ablation")
    donor, run = runs["full/seed-0"], runs["wo-object/seed-0"]
    sets = respond(donor)
    give_feedback(donor)
    storage.write_json(storage.join(donor.folder, "timing.json"), {"sample": 3.0, "label": 5.0, "evaluate": 9.0})
    assert adopt(run, [donor.folder], sets) == REWARDS
    assert feedback_stages(run.config)[0].is_complete()
    assert feedback_stages(run.config)[1].is_complete()
    assert storage.read_json(storage.join(run.folder, "timing.json")) == {"sample": 3.0, "label": 5.0}


def test_noise_takes_the_verdicts_to_label_again(base: Config) -> None:
    runs = runs_of(base, "noise")
    donor, run = runs["none/seed-0"], runs["all-40/seed-0"]
    sets = respond(donor)
    assert adopt(run, [donor.folder], sets) == VERDICTS
    give_feedback(donor)
    assert adopt(run, [donor.folder], sets) == FEEDBACK
    stage, _ = feedback_stages(run.config)
    assert not stage.is_complete()
    assert label.can_reuse(run.config, stage)


def test_a_run_of_another_seed_gives_nothing(base: Config) -> None:
    runs = runs_of(base, "ablation", (0, 1))
    respond(runs["full/seed-0"])
    run = runs["full/seed-1"]
    assert adopt(run, [runs["full/seed-0"].folder], prepare_images(run.config)) == RESPONSES
    assert fingerprint(run, RESPONSES) is None


def test_a_run_keeps_what_it_has(base: Config) -> None:
    runs = runs_of(base, "ablation")
    donor, run = runs["full/seed-0"], runs["wo-object/seed-0"]
    sets = respond(donor)
    respond(run)
    before = storage.list_parts(storage.join(run.folder, RESPONSES))
    adopt(run, [donor.folder], sets)
    assert storage.list_parts(storage.join(run.folder, RESPONSES)) == before


def test_a_finished_stage_of_other_settings_is_not_replaced_unasked(base: Config) -> None:
    runs = runs_of(base, "ablation")
    donor, run = runs["full/seed-0"], runs["wo-object/seed-0"]
    sets = respond(donor)
    stage = storage.Stage(run.folder, RESPONSES, "other settings")
    stage.begin()
    stage.publish({"rows": 4})
    with pytest.raises(UserError, match="responses is finished"):
        adopt(run, [donor.folder], sets)
    assert stage.is_complete()


def test_the_truth_labels_the_responses_of_its_variant(base: Config) -> None:
    runs = runs_of(base, "ablation")
    run = runs["human/seed-0"]
    adopt(run, [], respond(run))
    answers = read_answers([storage.join(run.folder, TRUTH_ANSWERS_FILE)], FACT_TYPES)
    assert sorted(answer.sample_id for answer in answers) == ["0", "1", "2", "3"]


def test_answers_before_alignment_are_put_where_evaluation_looks(base: Config) -> None:
    runs = runs_of(base, "ablation")
    donor, run = runs["full/seed-0"], runs["wo-object/seed-0"]
    finish(donor)
    sets = prepare_images(run.config)
    adopt(run, [donor.folder], sets)
    manifest = storage.read_manifest(run.folder, EVALUATION)
    assert manifest is not None
    assert manifest["before"] == stages.answers_before(run.config, sets)


def test_a_run_with_other_settings_is_not_finished(base: Config) -> None:
    run = runs_of(base, "cost")["fine/seed-0"]
    finish(run)
    changed = load_config("configs/shapes.yaml", [f"run.dir={base.run.dir}", *COUNTS, "align.steps=7"])
    assert (is_finished(run), is_finished(runs_of(changed, "cost")["fine/seed-0"])) == (True, False)


def test_runs_of_other_experiments_are_found(base: Config) -> None:
    runs = [runs_of(base, name)[first] for name, first in (("cost", "fine/seed-0"), ("noise", "none/seed-0"))]
    for run in runs:
        finish(run)
    assert sorted(other_folders(base)) == sorted(run.folder for run in runs)


def test_one_failed_run_does_not_keep_the_others_from_going_on(
    base: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last variant's labels cannot be read: it fails before anything is started for it."""

    people = load_config("configs/shapes.yaml", [f"run.dir={base.run.dir}", *COUNTS, "label.human={path: nobody.json}"])
    runs = runs_of(people, "ablation")
    respond(runs["human/seed-0"])
    finish(runs["full/seed-0"])
    with pytest.raises(UserError, match=r"1 of 2 runs failed \(human/seed-0\)"):
        run_experiment(people, "ablation", "0", "human", 1, "fgaif experiment ablation")
    folder = Path(base.run.dir) / "ablation"
    results = json.loads((folder / "results.json").read_text())
    status = {variant["name"]: variant["runs"][0]["status"] for variant in results["variants"]}
    assert status == {"full": "done", "human": "failed"}
    assert "Cannot read the answers nobody.json" in (folder / "ablation.html").read_text()
    assert "full/seed-0: done before" in capsys.readouterr().out


def test_a_finished_experiment_starts_nothing(base: Config, capsys: pytest.CaptureFixture[str]) -> None:
    for run in runs_of(base, "cost").values():
        finish(run)
    run_experiment(base, "cost", "0", None, 1, "fgaif experiment cost")
    assert "2 of 2 runs done" in (Path(base.run.dir) / "cost" / "cost.html").read_text()
    assert "20.0" in capsys.readouterr().out  # the table


def test_the_plots_are_files_too(base: Config) -> None:
    for run in runs_of(base, "noise").values():
        finish(run)
    run_experiment(base, "noise", "0", None, 1, "fgaif experiment noise")
    plots = sorted((Path(base.run.dir) / "noise" / "plots").iterdir())
    assert [plot.name for plot in plots] == ["coverage.svg", "hallucination.svg", "variants.svg"]
    assert all(plot.read_bytes().startswith(b"<svg xmlns=") for plot in plots)


def test_a_dry_run_lists_the_runs_and_writes_nothing(base: Config) -> None:
    from jobs.cli import main

    arguments = ["noise", "--config", "configs/shapes.yaml", "--variants", "all-*", "--dry-run"]
    arguments += ["--set", f"run.dir={base.run.dir}"]
    assert main("experiment", arguments) == 0
    assert not Path(base.run.dir).exists()


@pytest.mark.parametrize("seeds", ["", "a", "0,-1"])
def test_wrong_seeds_are_refused(seeds: str, capsys: pytest.CaptureFixture[str]) -> None:
    from jobs.cli import main

    arguments = ["cost", "--config", "configs/shapes.yaml", f"--seeds={seeds}"]
    assert main("experiment", arguments) == 2
    assert "--seeds takes whole numbers" in capsys.readouterr().err
