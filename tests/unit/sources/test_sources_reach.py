"""What rows may name as an image: files below ``data.path``, of a bounded size, and nothing on the network."""

import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.source_data import configure, names, picture, plain_rows, write_lines, write_pictures

from fgaif_ray import storage
from fgaif_ray.errors import UserError
from fgaif_ray.images import MAX_IMAGE_FILE_BYTES, load_image
from fgaif_ray.sources import prepare_images


def prepare(folder: Path, image: str, **data: Any) -> list[str]:
    """Paths of the images of rows of which the third names this image."""
    rows = plain_rows(folder / "data")
    rows[2] = {"image": image, "prompt": "a"}
    path = write_lines(folder / "data" / "rows.jsonl", rows)
    sets = prepare_images(configure(folder / "run", path=str(path), **data))
    return [image for part in (sets.sample, sets.align, sets.evaluate) for (image,) in part]


@pytest.fixture
def visits() -> Iterator[tuple[str, list[str]]]:
    """The URL of a server on this machine, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(302)
            self.send_header("location", "/secret.png")
            self.end_headers()

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("anywhere", [False, True])
@pytest.mark.parametrize("form", ["{}/a.png", "simplecache::{}/a.png", "reference://a::{}/refs.json"])
def test_no_row_asks_a_server(tmp_path: Path, visits: tuple[str, list[str]], form: str, anywhere: bool) -> None:
    url, asked = visits
    with pytest.raises(UserError, match=r"rows\.jsonl, line 3: 'image' cannot be used: "):
        prepare(tmp_path, form.format(url), images_outside_path=anywhere)
    assert asked == []


@pytest.mark.parametrize("anywhere", [False, True])
@pytest.mark.parametrize(
    "image",
    [
        "https://example.org/a.png",
        "HTTPS://example.org/a.png",
        "hf://datasets/owner/name/a.png",
        "reference://a.png",
        "ssh://host/a.png",
        "filecache::file:///a.png",
        "zip::a.png",
        "a\0.png",
    ],
)
def test_only_files_and_object_storage_are_named(tmp_path: Path, image: str, anywhere: bool) -> None:
    with pytest.raises(UserError, match="line 3: 'image' cannot be used: "):
        prepare(tmp_path, image, images_outside_path=anywhere)


OUTSIDE = ["/dev/zero", "../secret.png", "a/../../secret.png", "file:///etc/secret.png", "s3://other/secret.png"]


@pytest.mark.parametrize("image", OUTSIDE)
def test_an_image_outside_the_folder_is_refused_with_the_key_that_allows_it(tmp_path: Path, image: str) -> None:
    with pytest.raises(UserError, match=r"line 3: .* not below .*/data.*data\.images_outside_path=true"):
        prepare(tmp_path, image)


def test_images_outside_the_folder_can_be_allowed(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(picture(7))
    for image in ("../secret.png", str(tmp_path / "secret.png"), f"file://{tmp_path}/secret.png", "s3://other/a.png"):
        assert any(
            path.endswith(image.removeprefix("..")) for path in prepare(tmp_path, image, images_outside_path=True)
        )


@pytest.mark.parametrize("form", ["02.png", "./02.png", "sub/../02.png", "{}/02.png", "file://{}/02.png"])
def test_a_path_below_the_folder_may_have_any_form(tmp_path: Path, form: str) -> None:
    assert "02.png" in names((path,) for path in prepare(tmp_path, form.format(tmp_path / "data")))


def test_rows_of_a_subfolder_name_images_beside_it(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data" / "images", 9)
    rows = [{"image": f"../images/{index:02d}.png", "prompt": "a"} for index in range(9)]
    (tmp_path / "data" / "rows").mkdir()
    write_lines(tmp_path / "data" / "rows" / "a.jsonl", rows)
    sets = prepare_images(configure(tmp_path / "run", path=str(tmp_path / "data")))
    assert storage.read_bytes(*sets.sample[0]) == picture(0)
    with pytest.raises(UserError, match="not below"):
        prepare_images(configure(tmp_path / "run", path=str(tmp_path / "data" / "rows")))


@pytest.mark.parametrize("image", ["memory://b/other/a.png", "memory://b/data/../other/a.png", "../other/a.png"])
def test_remote_rows_stay_below_their_folder_too(tmp_path: Path, image: str) -> None:
    lines = [json.dumps({"image": one, "prompt": "a"}) for one in ("a.png", "memory://b/data/b.png", image)]
    storage.write_bytes("memory://b/data/rows.jsonl", "\n".join(lines).encode())
    with pytest.raises(UserError, match=r"line 3: .* not below memory://b/data"):
        prepare_images(configure(tmp_path / "run", path="memory://b/data/rows.jsonl"))


# What is read


def test_what_is_not_a_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in ("/dev/zero", str(tmp_path / "pipe.png"), str(tmp_path)):
        with pytest.raises(UserError, match="not a regular file"):
            load_image(path)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_file_too_large_for_an_image_is_not_read(tmp_path: Path, scheme: str) -> None:
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(MAX_IMAGE_FILE_BYTES + 1)  # takes no space
    with pytest.raises(UserError, match="larger than"):
        load_image(f"{scheme}{tmp_path}/large.png")


def test_a_remote_file_is_not_read_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgaif_ray.images.MAX_IMAGE_FILE_BYTES", 1000)
    storage.write_bytes("memory://sizes/large.png", bytes(1001))
    storage.write_bytes("memory://sizes/small.png", picture(3))
    assert load_image("memory://sizes/small.png").size == (8, 8)
    with pytest.raises(UserError, match="larger than"):
        load_image("memory://sizes/large.png")
