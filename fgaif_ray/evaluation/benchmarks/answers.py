"""Answers made elsewhere or by this run: JSON lines, joined with the questions by id or text.

    {"benchmark": "pope", "model": "mine", "id": "random/1", "answer": "Yes"}
    {"benchmark": "amber", "image": "AMBER_1.jpg", "question": "Describe this image.", "answer": "A lake ..."}

``benchmark`` may be missing where one is scored, ``model`` is the file's name where it is missing. A row is found by
``id``, or by ``image`` and ``question``, or by ``image`` where a benchmark asks once about each. A ``question`` beside
an ``id`` has to be the official text, because files of other versions share ids but not questions.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fgaif_ray import storage
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation.benchmarks.base import Benchmark

Answers = dict[str, dict[str, dict[str, str]]]
"""Benchmark -> model -> question id -> answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLine:
    """A line of an answer file.

    Example: ``AnswerLine(place="mine.jsonl, line 1", model="mine", benchmark="pope", id="random/1", text="Yes")``
    """

    place: str
    """File and line, for messages."""
    model: str
    """The file's name where the line names none."""
    text: str
    """The answer."""
    benchmark: str | None = None
    """Name of the benchmark; None where the line does not say."""
    id: str | None = None
    """Of the question, or None."""
    image: str | None = None
    """Official name of the image, or a path that ends in it, or None."""
    question: str | None = None
    """Official text of the question, or None."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any], place: str, default_model: str) -> "AnswerLine":
        """Build it from a line's object, which has a text under ``answer``."""
        benchmark, id_, image, question = (
            None if value.get(name) is None else str(value[name]) for name in ("benchmark", "id", "image", "question")
        )
        return cls(
            place=place,
            model=str(value.get("model", default_model)),
            text=value["answer"],
            benchmark=benchmark,
            id=id_,
            image=image,
            question=question,
        )

    def is_about(self, name: str, *, alone: bool) -> bool:
        """Tell whether it belongs to a benchmark. A line without a name does if that benchmark is the only one."""
        return alone if self.benchmark is None else self.benchmark.replace("-", "_") == name


def read_answer_lines(files: Sequence[str]) -> list[AnswerLine]:
    """Read the lines of answer files.

    Raises:
        UserError: a file cannot be read, or a line has no text under ``answer``.
    """
    lines = []
    for path in files:
        try:
            text = storage.read_bytes(path).decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"Cannot read the answers {path}: give a file of JSON lines with --answers.") from error
        default = path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number} is not JSON ({error.msg}).") from error
            if not isinstance(value, dict) or not isinstance(value.get("answer"), str):
                raise UserError(f"{path}, line {number}: an answer needs its text under 'answer'.")
            lines.append(AnswerLine.from_json(value, f"{path}, line {number}", default))
    return lines


def images_of(lines: Iterable[AnswerLine], name: str, *, alone: bool) -> set[str]:
    """List the images that lines of one benchmark are about, by ``image`` or ``id``."""
    own = (line for line in lines if line.is_about(name, alone=alone))
    return {str(line.id if line.image is None else line.image).rsplit("/", 1)[-1] for line in own}


def join_answers(
    lines: Iterable[AnswerLine], benchmark: Benchmark, *, alone: bool, limited: bool = False
) -> dict[str, dict[str, str]]:
    """Collect the answers to a benchmark, by model and question id. Every model has to have answered every question.

    Args:
        lines: from ``read_answer_lines``.
        benchmark: whose questions.
        alone: whether lines that name no benchmark are about this one.
        limited: whether the benchmark has only some of its questions, so that lines may fit none.

    Raises:
        UserError: a line fits no question, two lines answer one differently, or a question has no answer.
    """
    prompts = {question.id: question.prompt for question in benchmark.questions}
    by_image: dict[str, list[str]] = defaultdict(list)
    by_text: dict[tuple[str, str], list[str]] = defaultdict(list)
    for question in benchmark.questions:
        by_image[question.image].append(question.id)
        by_text[question.image, question.prompt].append(question.id)
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for line in lines:
        if not line.is_about(benchmark.name, alone=alone):
            continue
        text, place = line.question, line.place
        if line.id is not None:
            ids = [line.id] if line.id in prompts else []
            if ids and text is not None and text != prompts[line.id]:
                raise UserError(f"{place}: question {line.id} of {benchmark.title} is {prompts[line.id]!r} here.")
        else:
            image = (line.image or "").removeprefix("./")
            if image not in by_image:  # official names may have folders, and paths of answers others
                image = image.rsplit("/", 1)[-1]
            ids = by_text.get((image, text), []) if text is not None else by_image.get(image, [])
            if text is None and len(ids) > 1:
                raise UserError(f"{place}: {benchmark.title} asks {len(ids)} questions about {image}: give 'question'.")
        if not ids and not limited:
            raise UserError(
                f"{place}: {benchmark.title} has no such question; give its 'id', or 'image' and 'question'."
            )
        answers = found[line.model]
        for id_ in ids:
            if answers.setdefault(id_, line.text) != line.text:
                raise UserError(f"{place}: another row answers question {id_} of {benchmark.title} differently.")
    if not found:
        raise UserError(f"There are no answers to {benchmark.title} in these files: rows say 'benchmark': ... .")
    for model, answers in found.items():
        missing = [id_ for id_ in prompts if id_ not in answers]
        if missing:
            raise UserError(
                f"{model} has not answered {len(missing)} of {len(prompts)} questions of {benchmark.title}, the first: "
                f"{missing[0]}; metrics over a part of a benchmark cannot be compared."
            )
    return dict(found)


def answer_lines(benchmark: Benchmark, model: str, answers: Mapping[str, str]) -> str:
    """Format a model's answers as JSON lines that ``read_answer_lines`` reads back."""
    lines = [
        {
            "benchmark": benchmark.name,
            "model": model,
            "id": question.id,
            "image": question.image,
            "question": question.prompt,
            "answer": answers[question.id],
        }
        for question in benchmark.questions
        if question.id in answers
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
