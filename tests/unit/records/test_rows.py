"""Rows as dataclasses and as plain values: nothing is lost between them, through Parquet as well."""

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from fgaif_ray import storage
from fgaif_ray.records import (
    ABSENT,
    AI,
    CONSISTENT,
    FACT_TYPES,
    FEEDBACK_COLUMNS,
    HALLUCINATED,
    NOISE,
    REJECTED_SCHEMA,
    RESPONSES_SCHEMA,
    Fact,
    Feedback,
    JudgedFact,
    RejectedResponse,
    Response,
    Segment,
    feedback_schema,
)

SAMPLED = Response(
    sample_id="9f2c",
    image="dog.png",
    image_sha256="51ab",
    prompt="What is there?",
    text="A red dog. It sits.",
    token_ids=(319, 2654, 2),
    finish_reason="stop",
    model="policy",
)
PROVIDED = dataclasses.replace(SAMPLED, token_ids=None, finish_reason=None)
OF_SEVERAL = dataclasses.replace(SAMPLED, more_images=("cat.png", "s3://photos/bird.png"))
FLIPPED = Segment(
    start=0,
    end=11,
    text="A red dog. ",
    facts=(
        JudgedFact(
            type="existence",
            text="There is a dog.",
            p_consistent=0.75,
            consistent=True,
            second_p_consistent=0.25,
            second_consistent=False,
        ),
    ),
    labels={"existence": HALLUCINATED, "attribute": ABSENT, "relation": ABSENT},
    ai_labels={"existence": CONSISTENT, "attribute": ABSENT, "relation": ABSENT},
    label_sources={"existence": NOISE, "attribute": AI, "relation": AI},
)
MASKED = Segment(
    start=11,
    end=19,
    text="It sits.",
    facts=(),
    labels={"existence": None, "attribute": ABSENT, "relation": ABSENT},
    ai_labels={"existence": CONSISTENT, "attribute": ABSENT, "relation": ABSENT},
    label_sources={"existence": None, "attribute": AI, "relation": AI},
)
FEEDBACK = Feedback(response=SAMPLED, segments=(FLIPPED, MASKED), annotator="{}")


def through_parquet(folder: Path, row: dict[str, Any], schema: pa.Schema, columns: Any = None) -> dict[str, Any]:
    storage.write_part(str(folder), [row], schema)
    [found] = storage.read_rows(str(folder), columns)
    return found


@pytest.mark.parametrize("response", [SAMPLED, PROVIDED, OF_SEVERAL])
def test_a_response_survives_parquet(tmp_path: Path, response: Response) -> None:
    assert Response.from_row(through_parquet(tmp_path, response.to_row(), RESPONSES_SCHEMA)) == response


def test_a_rejected_response_survives_parquet(tmp_path: Path) -> None:
    rejected = RejectedResponse(response=SAMPLED, reason="timeout: no answer")
    assert RejectedResponse.from_row(through_parquet(tmp_path, rejected.to_row(), REJECTED_SCHEMA)) == rejected


def test_feedback_survives_parquet(tmp_path: Path) -> None:
    found = through_parquet(tmp_path, FEEDBACK.to_row(), feedback_schema(FACT_TYPES))
    assert Feedback.from_row(found) == FEEDBACK


def test_feedback_can_be_read_without_the_sampled_ids(tmp_path: Path) -> None:
    found = Feedback.from_row(
        through_parquet(tmp_path, FEEDBACK.to_row(), feedback_schema(FACT_TYPES), FEEDBACK_COLUMNS)
    )
    assert found.response == dataclasses.replace(SAMPLED, token_ids=None)
    assert found.segments == FEEDBACK.segments


@pytest.mark.parametrize(
    ("row", "schema"),
    [
        (SAMPLED.to_row(), RESPONSES_SCHEMA),
        (RejectedResponse(response=SAMPLED, reason="").to_row(), REJECTED_SCHEMA),
        (FEEDBACK.to_row(), feedback_schema(FACT_TYPES)),
    ],
)
def test_rows_have_the_columns_of_their_schema(row: dict[str, Any], schema: pa.Schema) -> None:
    assert list(row) == schema.names


def test_labels_of_a_row_that_does_not_name_their_source_are_the_ais(tmp_path: Path) -> None:
    row = FEEDBACK.to_row()
    for segment in row["segments"]:
        del segment["ai_labels"], segment["label_sources"]
    flipped, masked = Feedback.from_row(through_parquet(tmp_path, row, feedback_schema(FACT_TYPES))).segments
    assert flipped.ai_labels == flipped.labels == FLIPPED.labels
    assert flipped.label_sources == dict.fromkeys(FACT_TYPES, AI)
    assert masked.label_sources["existence"] is None


def test_facts_of_a_run_without_second_verifier_columns_have_no_second_verdict() -> None:
    found = JudgedFact.from_row({"type": "existence", "text": "A dog.", "p_consistent": 0.5, "consistent": True})
    assert (found.second_p_consistent, found.second_consistent) == (None, None)


def test_a_fact_survives_as_plain_values() -> None:
    assert Fact.from_row(Fact("existence", "There is a dog.").to_row()) == Fact("existence", "There is a dog.")


@pytest.mark.parametrize("row", [SAMPLED, FLIPPED, FEEDBACK])
def test_rows_cannot_be_changed(row: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(row, dataclasses.fields(row)[0].name, "other")


def test_a_response_about_one_image_has_no_further_ones(tmp_path: Path) -> None:
    assert through_parquet(tmp_path, SAMPLED.to_row(), RESPONSES_SCHEMA)["more_images"] is None
    assert SAMPLED.images == ("dog.png",)
    assert OF_SEVERAL.images == ("dog.png", "cat.png", "s3://photos/bird.png")


def test_tables_without_the_column_of_further_images_are_read(tmp_path: Path) -> None:
    row = SAMPLED.to_row()
    del row["more_images"]
    schema = pa.schema([field for field in RESPONSES_SCHEMA if field.name != "more_images"])
    assert Response.from_row(through_parquet(tmp_path, row, schema, RESPONSES_SCHEMA.names)) == SAMPLED
