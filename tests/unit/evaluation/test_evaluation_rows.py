"""Rows of an evaluation as dataclasses and as plain values: nothing is lost between them, through Parquet as well."""

import dataclasses
from pathlib import Path

from fgaif_ray import storage
from fgaif_ray.evaluation.rows import (
    ANSWERS_SCHEMA,
    QUESTIONS_SCHEMA,
    REJECTED_SCHEMA,
    EvaluationAnswer,
    EvaluationQuestion,
    RejectedQuestion,
)

QUESTION = EvaluationQuestion(
    id="0f3a",
    which="before",
    task="greedy",
    image="dog.png",
    prompt="What is there?",
    temperature=0.5,
    max_tokens=64,
    seed=2**32 - 1,
)
ANSWER = EvaluationAnswer(question=QUESTION, text="A red dog.", tokens=4, finish_reason="stop")


def test_an_answer_survives_parquet(tmp_path: Path) -> None:
    storage.write_part(str(tmp_path), [ANSWER.to_row()], ANSWERS_SCHEMA)
    assert list(map(EvaluationAnswer.from_row, storage.read_rows(str(tmp_path)))) == [ANSWER]


def test_rows_have_the_columns_of_their_schema() -> None:
    rejected = RejectedQuestion(question=QUESTION, reason="it is cut short")
    assert list(QUESTION.to_row()) == QUESTIONS_SCHEMA.names
    assert list(ANSWER.to_row()) == ANSWERS_SCHEMA.names
    assert list(rejected.to_row()) == REJECTED_SCHEMA.names


def test_an_answer_about_several_images_survives_parquet(tmp_path: Path) -> None:
    question = dataclasses.replace(QUESTION, more_images=("cat.png",))
    answer = dataclasses.replace(ANSWER, question=question)
    storage.write_part(str(tmp_path), [answer.to_row(), ANSWER.to_row()], ANSWERS_SCHEMA)
    assert list(map(EvaluationAnswer.from_row, storage.read_rows(str(tmp_path)))) == [answer, ANSWER]
