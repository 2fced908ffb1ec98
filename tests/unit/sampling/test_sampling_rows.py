"""Rows of sampling as dataclasses and as plain values."""

from actors.sampling.rows import REJECTED_IMAGES_SCHEMA, TASK_SCHEMA, RejectedImage, SamplingTask
from fgaif_ray.sources import PROVIDED_SCHEMA, ProvidedResponse


def test_a_task_survives_as_plain_values() -> None:
    for more in ((), ("cat.png",)):
        task = SamplingTask(image="dog.png", more_images=more, prompt="What is there?")
        assert list(task.to_row()) == TASK_SCHEMA.names
        assert SamplingTask.from_row(task.to_row()) == task


def test_a_rejected_image_survives_as_plain_values() -> None:
    for more in ((), ("cat.png",)):
        rejected = RejectedImage(image="dog.png", more_images=more, prompt="What is there?", reason="it is cut short")
        assert list(rejected.to_row()) == REJECTED_IMAGES_SCHEMA.names
        assert RejectedImage.from_row(rejected.to_row()) == rejected


def test_a_provided_response_survives_as_plain_values() -> None:
    for more in ((), ("cat.png",)):
        given = ProvidedResponse(image="dog.png", more_images=more, prompt="What is there?", text="A red dog.")
        assert list(given.to_row()) == PROVIDED_SCHEMA.names
        assert ProvidedResponse.from_row(given.to_row()) == given
