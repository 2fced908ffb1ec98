"""An audit in Label Studio: its labelling configuration, its tasks to import, and its JSON export.

One task per segment, one choice per fact type; the choices' aliases are what the export holds. Set the project up
with ``labelling_config``, import the tasks, and export as "JSON" (not "JSON-MIN"). Formats:
https://labelstud.io/guide/task_format and https://labelstud.io/tags/choices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from xml.sax.saxutils import quoteattr

from fgaif_ray.errors import UserError
from fgaif_ray.fact_types import FactType
from fgaif_ray.records import CLASS_NAMES

if TYPE_CHECKING:
    from fgaif_ray.audit.items import Audit

CHOICES: Final = (*CLASS_NAMES, "unsure")
_TITLES: Final = {
    "absent": "nothing claimed",
    "consistent": "all right",
    "hallucinated": "something wrong",
    "unsure": "unsure",
}


def _choices(fact_type: FactType) -> str:
    name, keys = fact_type.name, fact_type.hot_keys
    hot_keys = [f" hotkey={quoteattr(key)}" for key in keys] or [""] * len(CHOICES)
    lines = [
        f'    <Choice value="{_TITLES[value]}" alias="{value}"{hot_key}/>'
        for value, hot_key in zip(CHOICES, hot_keys, strict=True)
    ]
    title = fact_type.title[:1].upper() + fact_type.title[1:]
    return "\n".join(
        [
            f"  <Header value={quoteattr(title)}/>",
            f'  <Text name="{name}_facts" value="${name}_facts"/>',
            f'  <Choices name="{name}" toName="sub_sentence" choice="single" showInline="true">',
            *lines,
            "  </Choices>",
        ]
    )


def labelling_config(fact_types: Sequence[FactType]) -> str:
    """Write the labelling configuration of a project, as XML."""
    return "\n".join(
        [
            "<View>",
            '  <Image name="image" value="$image"/>',
            '  <Text name="response" value="$response"/>',
            '  <Header value="Segment"/>',
            '  <Text name="sub_sentence" value="$sub_sentence"/>',
            *map(_choices, fact_types),
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
        pictures: data URL of the images of each response, by their digest.
    """
    tasks = []
    for item in audit.items:
        facts = {name: [fact.text for fact in item.facts if fact.type == name] for name in audit.types}
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


def parse_export(tasks: Sequence[object], path: str, types: Sequence[str]) -> list[StudioAnswer]:
    """Read the annotations of an export about these fact types; skipped ones are left out.

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
                choices = _read_choices(annotation["result"], number, path, types)
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


def _read_choices(result: Sequence[object], number: int, path: str, types: Sequence[str]) -> dict[str, str]:
    chosen = {}
    for region in result:
        name = str(region.get("from_name")) if isinstance(region, dict) else ""
        if not isinstance(region, dict) or region.get("type") != "choices" or name not in types:
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
