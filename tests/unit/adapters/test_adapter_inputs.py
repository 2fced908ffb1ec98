"""What the adapters read of a trainer's row: images in many forms, the question, a reference."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.adapter_calls import data_url, pil
from support.reward_helpers import PROMPT, RESPONSE, picture

from fgaif_ray.adapters.common import image_file, image_files, question_text, reference_item


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path,
        str,
        lambda path: f"file://{path}",
        lambda path: path.read_bytes(),
        lambda path: data_url(0),
        lambda path: data_url(0).partition(",")[2],
        lambda path: {"bytes": path.read_bytes(), "path": None},
        lambda path: {"bytes": None, "path": str(path)},
        lambda path: [{"image": str(path)}],
        lambda path: {"type": "image_url", "image_url": {"url": data_url(0)}},
        lambda path: np.array([str(path)], dtype=object),
    ],
)
def test_an_image_may_come_in_many_forms(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(picture(0))
    assert image_files(make(path)) == [picture(0)]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "L", "P"])
def test_a_picture_in_memory_may_have_any_mode(mode: str) -> None:
    assert image_file(pil(0).convert(mode)).startswith(b"\x89PNG")


@pytest.mark.parametrize("cell", [None, 3, "https://example.org/cat.png", "cat.png", "cats", [], ["a", "b"], {}])
def test_what_is_no_image_is_told(cell: object) -> None:
    with pytest.raises(ValueError, match="image"):
        image_files(cell)


def test_the_question_is_the_last_thing_the_user_said() -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "<image>\nWhat is there?"}]},
    ]
    assert question_text(chat) == question_text("<image>What is there? ") == "What is there?"
    with pytest.raises(ValueError, match="user"):
        question_text(chat[:1])


def test_a_list_of_images_is_read_in_order(tmp_path: Path) -> None:
    for index in range(2):
        (tmp_path / f"{index}.png").write_bytes(picture(index))
    cells = [str(tmp_path / "0.png"), {"bytes": picture(1)}]
    assert image_files(cells) == image_files(tuple(cells)) == [picture(0), picture(1)]


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("Is <image> like <image>?", "Is <image> like <image>?"),
        ("<image>Compare.", "Compare."),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "image"}, {"type": "image_url"}, {"type": "text", "text": "Same?"}],
                }
            ],
            "<image><image>Same?",
        ),
    ],
)
def test_places_of_several_images_stay_where_they_are_as_many(prompt: Any, question: str) -> None:
    assert question_text(prompt, 2) == question


def test_a_reference_may_have_several_images() -> None:
    item = reference_item({"images": [data_url(0), data_url(1)], "prompt": "Compare."}, RESPONSE)
    assert item == reference_item({"image": [data_url(0), data_url(1)], "prompt": "Compare."}, RESPONSE)
    assert len(item.image_fields) == 2


@pytest.mark.parametrize("label", [None, "", "cat.png", "3", {"image": "x.png"}, {"prompt": PROMPT}])
def test_a_reference_needs_image_and_question(label: object) -> None:
    with pytest.raises(ValueError, match="prompt"):
        reference_item(label, RESPONSE)
