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
from typing import Any

from fgaif_ray import storage
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation.benchmarks.base import Benchmark

Answers = dict[str, dict[str, dict[str, str]]]
"""Benchmark -> model -> question id -> answer."""


def read_rows(files: Sequence[str]) -> list[dict[str, Any]]:
    """Read the rows of answer files, each with ``model`` and ``place`` (for messages).

    Raises:
        UserError: a file cannot be read, or a row has no text under ``answer``.
    """
    rows = []
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
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number} is not JSON ({error.msg}).") from error
            if not isinstance(row, dict) or not isinstance(row.get("answer"), str):
                raise UserError(f"{path}, line {number}: an answer needs its text under 'answer'.")
            rows.append({"model": default} | row | {"place": f"{path}, line {number}"})
    return rows


def images_of(rows: Iterable[Mapping[str, Any]], name: str, *, alone: bool) -> set[str]:
    """List the images that rows of one benchmark are about, by ``image`` or ``id``."""
    own = (row for row in rows if is_about(row, name, alone=alone))
    return {str(row.get("image", row.get("id"))).rsplit("/", 1)[-1] for row in own}


def is_about(row: Mapping[str, Any], name: str, *, alone: bool) -> bool:
    """Tell whether a row belongs to a benchmark. A row without a name does if that benchmark is the only one."""
    told = row.get("benchmark")
    return alone if told is None else str(told).replace("-", "_") == name


def join_answers(
    rows: Iterable[Mapping[str, Any]], benchmark: Benchmark, *, alone: bool, limited: bool = False
) -> dict[str, dict[str, str]]:
    """Collect the answers to a benchmark, by model and question id. Every model has to have answered every question.

    Args:
        rows: from ``read_rows``.
        benchmark: whose questions.
        alone: whether rows that name no benchmark are about this one.
        limited: whether the benchmark has only some of its questions, so that rows may fit none.

    Raises:
        UserError: a row fits no question, two rows answer one differently, or a question has no answer.
    """
    prompts = {question.id: question.prompt for question in benchmark.questions}
    by_image: dict[str, list[str]] = defaultdict(list)
    by_text: dict[tuple[str, str], list[str]] = defaultdict(list)
    for question in benchmark.questions:
        by_image[question.image].append(question.id)
        by_text[question.image, question.prompt].append(question.id)
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        if not is_about(row, benchmark.name, alone=alone):
            continue
        text, place = row.get("question"), row["place"]
        if row.get("id") is not None:
            ids = [str(row["id"])] if str(row["id"]) in prompts else []
            if ids and text is not None and text != prompts[ids[0]]:
                raise UserError(f"{place}: question {row['id']} of {benchmark.title} is {prompts[ids[0]]!r} here.")
        else:
            image = str(row.get("image", "")).rsplit("/", 1)[-1]
            ids = by_text.get((image, str(text)), []) if text is not None else by_image.get(image, [])
            if text is None and len(ids) > 1:
                raise UserError(f"{place}: {benchmark.title} asks {len(ids)} questions about {image}: give 'question'.")
        if not ids and not limited:
            raise UserError(
                f"{place}: {benchmark.title} has no such question; give its 'id', or 'image' and 'question'."
            )
        answers = found[str(row["model"])]
        for id_ in ids:
            if answers.setdefault(id_, row["answer"]) != row["answer"]:
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
    """Format a model's answers as JSON lines that ``read_rows`` reads back."""
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
