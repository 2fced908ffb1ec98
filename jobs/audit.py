"""Check the AI's labels by hand: draw a sample of segments, label it in a browser, compare the answers.

Examples:
    fgaif audit draw 200 --config my.yaml
    fgaif audit import answers-*.json --config my.yaml
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final

import typer

from fgaif_ray import storage
from fgaif_ray.audit.human import read_answers
from fgaif_ray.audit.items import Audit, AuditSampler
from fgaif_ray.audit.labelled_facts import facts_of_audit, write_labelled_facts
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.fact_types import FactType, choose
from fgaif_ray.progress import say
from fgaif_ray.records import FEEDBACK_COLUMNS, Feedback
from fgaif_ray.storage import stages
from fgaif_ray.tables import estimate_cell, table_lines
from jobs.cli import ConfigOption, OverwriteOption, SetOption, main, read_config

PAGE_FILE: Final = "audit.html"
TASKS_FILE: Final = "audit_tasks.json"
STUDIO_FILE: Final = "label_studio.xml"
SAMPLE_FILE: Final = "sample.json"
AGREEMENT_FILE: Final = "agreement.json"
FACTS_FILE: Final = "facts.jsonl"
_COLUMNS: Final = (
    ("accuracy", "accuracy"),
    ("balanced_accuracy", "balanced accuracy"),
    ("kappa", "Cohen's kappa"),
    ("alpha_with_ai", "alpha with AI"),
    ("alpha_of_people", "alpha of people"),
)


@storage.writes_run("audit")
def draw_audit(config: Config, count: int) -> None:
    """Write `<run.dir>/audit/`: the page, Label Studio's tasks and the sample with the AI's verdicts.

    Raises:
        UserError: nothing has been labelled, the count is less than one, or an image cannot be read.
    """
    run_dir, seed = config.run.dir, config.run.seed
    sampler = AuditSampler(count, seed)
    stage = stages.audit(config, count, seed)
    page = storage.join(stage.folder, PAGE_FILE)
    if not stage.is_complete():
        folder = storage.join(run_dir, stages.FEEDBACK)
        for feedback in _read_feedback(folder):
            sampler.offer(feedback)
        audit = sampler.collect(_read_feedback(folder))
        fact_types = choose(audit.types, config.run.types, folder)
        _write(stage, audit, config.report.title, fact_types, config.run.overwrite)
        if len(audit.items) < count:
            say(f"audit: the run has only {len(audit.items)} segments; all are in the audit.")
    say(f"audit: open {page} in a browser, label, export, then `fgaif audit import FILE` with this configuration.")


def _read_feedback(folder: str) -> Iterator[Feedback]:
    return map(Feedback.from_row, storage.read_rows(folder, FEEDBACK_COLUMNS))


def _write(stage: storage.Stage, audit: Audit, title: str, fact_types: Sequence[FactType], overwrite: bool) -> None:
    from fgaif_ray.audit.label_studio import build_tasks, labelling_config
    from fgaif_ray.audit.page import build_page, load_pictures
    from fgaif_ray.images import load_image

    pictures = load_pictures(audit, load_image)
    stage.begin(overwrite=overwrite)
    tasks = build_tasks(audit, {key: url for key, (url, _) in pictures.items()})
    page = build_page(audit, pictures, title, fact_types)
    storage.write_bytes(storage.join(stage.partial, PAGE_FILE), page.encode())
    storage.write_json(storage.join(stage.partial, TASKS_FILE), tasks)
    storage.write_bytes(storage.join(stage.partial, STUDIO_FILE), labelling_config(fact_types).encode())
    storage.write_json(storage.join(stage.partial, SAMPLE_FILE), audit.to_dict())
    stage.publish({"sub_sentences": len(audit.items), "audit": audit.id})


@storage.writes_run("audit")
def import_answers(config: Config, paths: Sequence[str]) -> None:
    """Compare answers with the AI's labels; write `<run.dir>/audit/agreement.json` and print a table.

    Where facts were judged too, `<run.dir>/audit/facts.jsonl` keeps them for `label.verifier.calibration`.

    Raises:
        UserError: there is no audit, or an answer file cannot be used.
    """
    from fgaif_ray.audit.agreement import check_answers, compare

    folder = storage.join(config.run.dir, stages.AUDIT)
    if storage.read_manifest(config.run.dir, stages.AUDIT) is None:
        raise UserError(f"{folder} is not there: draw a sample with `fgaif audit draw N` and label its page first.")
    audit = Audit.from_dict(storage.read_json(storage.join(folder, SAMPLE_FILE)))
    answers = read_answers(paths, audit.types)
    check_answers(audit, answers, ", ".join(paths))
    found = compare(audit, answers)
    uri = storage.join(folder, AGREEMENT_FILE)
    storage.write_json(uri, found)
    say(
        f"audit: {found['answered']} of {found['sub_sentences']} segments answered, of {found['images']} images, "
        f"by {', '.join(found['annotators'])}; {len(found['disagreements'])} labels differ, see {uri}."
    )
    for line in agreement_table(found):
        say(line)
    judged = facts_of_audit(audit, answers)
    if judged:
        facts = storage.join(folder, FACTS_FILE)
        write_labelled_facts(facts, judged)
        say(f"audit: the judged facts are in {facts}; `fgaif calibrate {facts}` finds thresholds that agree with them.")


def agreement_table(found: Mapping[str, Any]) -> list[str]:
    """The lines of a table of what ``compare`` found, weighted to the whole labelled set, with intervals."""
    columns = [(key, title) for key, title in _COLUMNS if key in next(iter(found["labels"].values()))["weighted"]]
    rows = [["", "compared", *(title for _, title in columns)]]
    for what in ("labels", "facts"):
        for name, part in found[what].items():
            if what == "labels" or part["compared"]:
                cells = [estimate_cell(part["weighted"][key]) for key, _ in columns]
                rows.append([f"{name} {what}", str(part["compared"]), *cells])
    return [
        *table_lines(rows),
        f"(weighted to the whole labelled set; {found['confidence']:.0%} intervals over images)",
    ]


def draw(
    count: Annotated[int, typer.Argument(metavar="N", help="segments to label", show_default=False)],
    config: ConfigOption,
    overrides: SetOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Write a page on which to label N segments by hand.

    It opens in any browser; Label Studio's tasks with the same segments lie beside it.

    Example:
        fgaif audit draw 200 --config my.yaml
    """
    draw_audit(read_config(config, overrides, overwrite), count)


def import_files(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="one per person", show_default=False)],
    config: ConfigOption,
    overrides: SetOption = None,
) -> None:
    """Compare the AI's labels with exported answers.

    The page and Label Studio export them.

    Example:
        fgaif audit import anna.json ben.json --config my.yaml
    """
    import_answers(read_config(config, overrides), files)


commands: Final = {"draw": draw, "import": import_files}

if __name__ == "__main__":
    sys.exit(main("audit"))
