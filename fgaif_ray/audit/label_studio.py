"""An audit in Label Studio: its labelling configuration, its tasks to import, and its JSON export.

One task per segment, one choice per fact type; the choices' aliases are what the export holds. Set the project up
with ``LABELLING_CONFIG``, import the tasks, and export as "JSON" (not "JSON-MIN"). Formats:
https://labelstud.io/guide/task_format and https://labelstud.io/tags/choices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fgaif_ray.errors import UserError
from fgaif_ray.records import CLASS_NAMES, FACT_TYPES

if TYPE_CHECKING:
    from fgaif_ray.audit.items import Audit

CHOICES: Final = (*CLASS_NAMES, "unsure")
_TITLES: Final = {
    "absent": "nothing claimed",
    "consistent": "all right",
    "hallucinated": "something wrong",
    "unsure": "unsure",
}
_HOTKEYS: Final = dict(zip(FACT_TYPES, ("1234", "qwer", "asdf"), strict=True))


def _choices(fact_type: str) -> str:
    lines = [
        f'    <Choice value="{_TITLES[value]}" alias="{value}" hotkey="{key}"/>'
        for value, key in zip(CHOICES, _HOTKEYS[fact_type], strict=True)
    ]
    return "\n".join(
        [
            f'  <Header value="{fact_type.capitalize()}"/>',
            f'  <Text name="{fact_type}_facts" value="${fact_type}_facts"/>',
            f'  <Choices name="{fact_type}" toName="sub_sentence" choice="single" showInline="true">',
            *lines,
            "  </Choices>",
        ]
    )


LABELLING_CONFIG: Final = "\n".join(
    [
        "<View>",
        '  <Image name="image" value="$image"/>',
        '  <Text name="response" value="$response"/>',
        '  <Header value="Segment"/>',
        '  <Text name="sub_sentence" value="$sub_sentence"/>',
        *(_choices(name) for name in FACT_TYPES),
        "</View>",
        "",
    ]
)


@dataclass(frozen=True, slots=True)
class StudioTask:
    """Return which segment a task is about."""

    audit: str
    sample_id: str
    segment: int
    text: str


@dataclass(frozen=True, slots=True)
class StudioAnswer:
    """One annotation of a task; ``choices`` maps the fact types that were answered to one of CHOICES."""

    task: StudioTask
    annotator: str
    choices: dict[str, str]


def build_tasks(audit: "Audit", pictures: dict[str, str]) -> list[dict[str, Any]]:
    """Build the tasks of an audit in Label Studio's import form; the AI's verdicts are not among them.

    Args:
        audit: the sample.
        pictures: data URL of each image, by its hash.
    """
    tasks = []
    for item in audit.items:
        facts = {name: [fact["text"] for fact in item.facts if fact["type"] == name] for name in FACT_TYPES}
        marked = f"{item.response[: item.start]}\u27e6{item.text}\u27e7{item.response[item.end :]}"
        data = {
            "audit": audit.id,
            "sample_id": item.sample_id,
            "segment": item.segment,
            "image": pictures[item.image_sha256],
            "prompt": item.prompt,
            "response": marked,
            "sub_sentence": item.text,
        }
        data |= {f"{name}_facts": "\n".join(texts) or "(no fact was found)" for name, texts in facts.items()}
        tasks.append({"data": data})
    return tasks


def parse_export(tasks: Sequence[object], path: str) -> list[StudioAnswer]:
    """Read the annotations of an export; skipped ones are left out.

    Raises:
        UserError: the tasks are not those of an audit, or an annotation does not fit the labelling configuration.
    """
    answers = []
    for number, task in enumerate(tasks, start=1):
        if isinstance(task, dict) and "annotations" not in task and "annotation_id" in task:
            raise UserError(f"{path} is Label Studio's JSON-MIN export: export the project as JSON.")
        if not isinstance(task, dict) or not isinstance(task.get("annotations"), list):
            raise UserError(f"{path}: task {number} has no list of annotations: export the project as JSON.")
        subject = _subject(task.get("data"), number, path)
        for annotation in task["annotations"]:
            if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
                raise UserError(f"{path}: an annotation of task {number} has no result: export the project as JSON.")
            if not annotation.get("was_cancelled"):
                choices = _read_choices(annotation["result"], number, path)
                answers.append(StudioAnswer(subject, _annotator(annotation.get("completed_by")), choices))
    return answers


def _subject(data: object, number: int, path: str) -> StudioTask:
    fields = data if isinstance(data, dict) else {}
    audit, sample_id, segment, text = (fields.get(key) for key in ("audit", "sample_id", "segment", "sub_sentence"))
    if not (isinstance(audit, str) and isinstance(sample_id, str) and type(segment) is int and isinstance(text, str)):
        raise UserError(f"{path}: task {number} is none of an audit: import audit_tasks.json into an empty project.")
    return StudioTask(audit, sample_id, segment, text)


def _annotator(completed_by: object) -> str:
    """Label Studio gives a user's number, or an object with number and e-mail address."""
    if isinstance(completed_by, dict):
        completed_by = completed_by.get("email") or completed_by.get("id")
    return f"annotator {completed_by}" if isinstance(completed_by, int) else str(completed_by or "annotator")


def _read_choices(result: Sequence[object], number: int, path: str) -> dict[str, str]:
    chosen = {}
    for region in result:
        name = region.get("from_name") if isinstance(region, dict) else None
        if not isinstance(region, dict) or region.get("type") != "choices" or name not in FACT_TYPES:
            continue  # projects may have further questions
        value = region.get("value")
        choices = value.get("choices") if isinstance(value, dict) else None
        if not isinstance(choices, list) or len(choices) != 1 or choices[0] not in CHOICES:
            raise UserError(
                f"{path}: task {number} has {choices!r} for {name}, not exactly one of {', '.join(CHOICES)}: set the "
                "project up with label_studio.xml."
            )
        chosen[name] = choices[0]
    return chosen
