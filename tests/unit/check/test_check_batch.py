"""Batches checked by real reward models in this process."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.reward_helpers import RESPONSE, offline_model, picture, save_reward_models

from fgaif_ray.check.batch import BLOCK, check_lines
from fgaif_ray.check.local import LocalChecker
from fgaif_ray.check.questions import TextToCheck
from fgaif_ray.fact_types import BUILT_IN

LINK = "data:image/png;base64," + base64.b64encode(picture(1)).decode()
GOOD = {"image": "1.png", "response": RESPONSE}


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> LocalChecker:
    return LocalChecker(offline_model(save_reward_models(tmp_path_factory.mktemp("rewards"))), "v", BUILT_IN)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for shade in (1, 90):
        (tmp_path / f"{shade}.png").write_bytes(picture(shade))
    (tmp_path / "notes.png").write_text("no image")
    return tmp_path


def results(checker: LocalChecker, folder: Path, *rows: Any) -> list[dict[str, Any]]:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    return [shown for shown, _ in check_lines(lines, checker, str(folder))]


def test_a_line_has_the_fields_of_its_row_and_the_check(checker: LocalChecker, folder: Path) -> None:
    [shown] = results(checker, folder, GOOD | {"id": 7})
    assert (shown["id"], shown["image"]) == (7, "1.png") and len(shown["check"]["segments"]) == 2


def test_paths_are_relative_to_the_file_and_a_data_url_is_the_same_image(checker: LocalChecker, folder: Path) -> None:
    [by_path, by_url] = results(checker, folder, GOOD, {"image": LINK, "response": RESPONSE})
    assert by_path["check"]["score"] == pytest.approx(by_url["check"]["score"], abs=1e-5)


def test_image_files_are_not_written_again(checker: LocalChecker, folder: Path) -> None:
    [shown] = results(checker, folder, {"image": LINK, "response": RESPONSE})
    assert sorted(shown) == ["check", "response"]


def test_several_images_are_seen_in_their_order(checker: LocalChecker, folder: Path) -> None:
    names = ["1.png", "90.png"]
    rows = [{"images": some, "prompt": "Are they alike?", "response": RESPONSE} for some in (names, names[::-1])]
    one, other = (shown["check"]["segments"][0]["types"]["existence"] for shown in results(checker, folder, *rows))
    assert one["probabilities"] != pytest.approx(other["probabilities"], abs=1e-4)


def test_the_prompt_of_a_row_is_read(checker: LocalChecker, folder: Path) -> None:
    rows = (GOOD, GOOD | {"prompt": "What is not in this picture at all?"})
    one, other = (shown["check"]["segments"][0]["types"]["existence"] for shown in results(checker, folder, *rows))
    assert one["probabilities"] != pytest.approx(other["probabilities"], abs=1e-5)


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (b"{", "invalid_row"),
        (b"[1]", "invalid_row"),
        (b"\xff", "invalid_row"),
        ({"response": "A."}, "invalid_row"),
        ({"image": "1.png", "images": ["1.png"], "response": "A."}, "invalid_row"),
        ({"image": 3, "response": "A."}, "invalid_row"),
        ({"images": [], "response": "A."}, "invalid_row"),
        ({"image": "1.png"}, "invalid_row"),
        ({"image": "1.png", "response": "A.", "prompt": 3}, "invalid_row"),
        ({"image": "missing.png", "response": "A."}, "invalid_image"),
        ({"image": "notes.png", "response": "A."}, "invalid_image"),
        ({"image": "data:image/png;base64,????", "response": "A."}, "invalid_image"),
        ({"image": "1.png", "response": "\ud800"}, "invalid_text"),
        ({"image": "1.png", "response": "x" * 40_000}, "too_long"),
        ({"image": "1.png", "response": "A.", "prompt": "<image> and <image>?"}, "not_scorable"),
    ],
)
def test_a_row_that_cannot_be_checked_says_why_and_ends_nothing(
    checker: LocalChecker, folder: Path, row: Any, code: str
) -> None:
    wrong, right = results(checker, folder, row, GOOD)
    assert (wrong["error"]["code"], "check" in right) == (code, True)


def test_rows_are_read_as_they_are_checked(checker: LocalChecker, folder: Path) -> None:
    read = 0

    def lines() -> Iterator[bytes]:
        nonlocal read
        for _ in range(3 * BLOCK):
            read += 1
            yield json.dumps({"image": "1.png", "response": ""}).encode()

    next(check_lines(lines(), checker, str(folder)))
    assert read == BLOCK


def test_verdicts_on_whole_responses_count_once(tmp_path: Path) -> None:
    model = offline_model(save_reward_models(tmp_path, kind="coarse"))
    [found] = LocalChecker(model, "v", BUILT_IN, coarse=True).check_each([TextToCheck((picture(),), RESPONSE)])
    assert [segment.hallucination for segment in found.segments] == [0.0, pytest.approx(found.score)]
