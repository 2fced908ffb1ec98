"""Provided responses about several images, and those that cannot be shown."""

import hashlib
import os
from pathlib import Path

import pytest
from support.source_data import picture, write_pictures

from actors.engine.block_counts import BlockCounts
from actors.engine.blocks import table_of
from actors.sampling.provided import write_provided
from actors.sampling.rows import REJECTED_FOLDER, RejectedImage
from fgaif_ray import storage
from fgaif_ray.config import DataConfig
from fgaif_ray.records import Response, images_digest
from fgaif_ray.sources import PROVIDED_SCHEMA, ProvidedResponse


def write(folder: Path, given: list[ProvidedResponse]) -> BlockCounts:
    data = DataConfig(source="shapes", images_per_prompt=2)
    return write_provided(table_of(given, PROVIDED_SCHEMA), str(folder), "0", data)


def about(*images: str, prompt: str = "Compare.") -> ProvidedResponse:
    return ProvidedResponse(image=images[0], more_images=images[1:], prompt=prompt, text="They differ.")


def test_a_response_about_two_images_keeps_both(tmp_path: Path) -> None:
    images = [str(tmp_path / name) for name in write_pictures(tmp_path, 2)]
    assert write(tmp_path / "out", [about(*images)]) == BlockCounts(done=1)
    [response] = map(Response.from_row, storage.read_rows(str(tmp_path / "out")))
    assert response.images == tuple(images)
    assert response.image_sha256 == images_digest([hashlib.sha256(picture(index)).hexdigest() for index in (0, 1)])


@pytest.mark.parametrize(
    ("images", "prompt", "reason"),
    [
        (("00.png",), "Compare <image> and <image>.", "2 places for an image"),
        (("00.png", "01.png"), "What is in <image>?", "1 place for an image"),
        (("00.png", "01.png", "00.png"), "Compare.", "more than data.images_per_prompt (2)"),
        (("00.png", "none.png"), "Compare.", "none.png"),
        (("00.png", "pipe.png"), "Compare.", "not a regular file"),
    ],
)
def test_a_response_that_cannot_be_shown_is_rejected_alone(
    tmp_path: Path, images: tuple[str, ...], prompt: str, reason: str
) -> None:
    write_pictures(tmp_path, 2)
    os.mkfifo(tmp_path / "pipe.png")
    given = about(*(str(tmp_path / name) for name in images), prompt=prompt)
    good = about(str(tmp_path / "00.png"))
    assert write(tmp_path / "out", [given, good]) == BlockCounts(done=1, rejected=1)
    [rejected] = map(RejectedImage.from_row, storage.read_rows(str(tmp_path / "out" / REJECTED_FOLDER)))
    assert rejected.images == given.images
    assert reason in rejected.reason
