"""Images that strangers supply: normalised or refused with a reason, never fatal."""

import base64
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from support.image_files import claimed_png, encoded

from fgaif_ray.errors import UserError
from fgaif_ray.images import decode_image, find_images, load_image, open_images, read_data_url, side_by_side
from fgaif_ray.pixel_budget import PixelBudget


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.new("CMYK", (8, 8)), "JPEG"),
        encoded(Image.new("P", (8, 8))),
        encoded(Image.new("I;16", (8, 8))),
        encoded(Image.new("RGBA", (8, 8))),
        encoded(Image.new("1", (8, 8))),
        encoded(Image.new("RGB", (1, 1))),
        encoded(Image.new("L", (8, 8)), "GIF", save_all=True, append_images=[Image.new("L", (8, 8), 9)]),
    ],
    ids=["cmyk", "palette", "16-bit", "alpha", "bitmap", "one-pixel", "animated"],
)
def test_odd_images_become_rgb(data: bytes) -> None:
    assert decode_image(data).mode == "RGB"


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(Image.new("RGB", (10, 4)), "JPEG", exif=exif)).size == (4, 10)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"just text",
        encoded(Image.effect_noise((64, 64), 50))[:200],
        claimed_png(10_000, 10_000),
        encoded(Image.new("RGB", (400, 2))),
        encoded(Image.new("RGB", (8, 8)), "PPM"),
    ],
    ids=["empty", "text", "truncated", "bomb", "aspect-200", "unlisted-format"],
)
def test_poison_is_refused_with_a_reason(data: bytes) -> None:
    with pytest.raises(ValueError, match="image"):
        decode_image(data)


def test_several_images_are_opened_each_once_with_the_reason_of_what_is_none(tmp_path: Path) -> None:
    good, text = str(tmp_path / "good.png"), str(tmp_path / "text.png")
    Image.new("RGB", (40, 20), "red").save(good)
    Path(text).write_text("no image")
    opened = open_images([good, text, good, "s3"], PixelBudget(max=200))
    assert list(opened) == [good, text, "s3"]
    assert isinstance(opened[good], Image.Image) and opened[good].size == (20, 10)
    assert [str(opened[path]).split(": ")[0] for path in (text, "s3")] == [
        f"{text} is not a usable image",
        "Cannot read the image s3",
    ]


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
AVIF_AS_HEIF = b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + bytes(40)
SVG = b'<?xml version="1.0"?>\n<!-- a drawing -->\n<svg xmlns="http://www.w3.org/2000/svg"></svg>'


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (HEIC, "HEIC"),
        (HEIC.replace(b"ftypheic", b"ftypmif1"), "HEIC"),
        (encoded(Image.new("RGB", (64, 64)), "AVIF"), "AVIF"),
        (AVIF_AS_HEIF, "AVIF"),
        (encoded(Image.new("RGB", (64, 64)), "JPEG2000"), "JPEG 2000"),
        (encoded(Image.new("RGB", (64, 64)), "JPEG2000", no_jp2=True), "JPEG 2000"),
        (encoded(Image.new("RGB", (64, 64)), "PDF"), "PDF"),
        (SVG, "SVG"),
        (b"\xef\xbb\xbf  <svg width='3'/>", "SVG"),
    ],
    ids=["heic", "heif", "avif", "avif-as-heif", "jp2", "jpeg-2000-codestream", "pdf", "svg-xml", "svg"],
)
def test_a_format_that_is_not_read_is_named(data: bytes, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^its format is {name}, .*: convert the image to JPEG or PNG$"):
        decode_image(data)


def test_a_page_with_a_drawing_is_not_taken_for_a_drawing() -> None:
    with pytest.raises(ValueError, match="no readable image"):
        decode_image(b"<!doctype html><html><body>not found <svg></svg></body></html>")


def test_a_bomb_takes_no_memory() -> None:
    """The first claims its pixels, the second has them: 10,000 x 10,000 in a file of 100 kB."""
    script = """
import re, sys
from pathlib import Path
from fgaif_ray.images import decode_image
# Not ru_maxrss: a process takes it over from the one that started it, and grows unseen below it.
def peak(): return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
data = sys.stdin.buffer.read()
cut = int(sys.argv[1])
before = peak()
for bomb in (data[:cut], data[cut:]):
    try:
        decode_image(bomb)
    except ValueError as error:
        assert "10000 x 10000 pixels" in str(error)
print((peak() - before) / 1024)
"""
    claimed, real = claimed_png(10_000, 10_000), encoded(Image.new("1", (10_000, 10_000)))
    command = [sys.executable, "-c", script, str(len(claimed))]
    grown_mib = float(subprocess.run(command, input=claimed + real, stdout=subprocess.PIPE, check=True).stdout)
    assert grown_mib < 10


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="holds no images"):
        find_images(str(tmp_path))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path"):
        find_images(str(tmp_path / "none"))


def test_text_named_jpg_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("hello")
    with pytest.raises(UserError, match=r"a\.jpg"):
        load_image(str(tmp_path / "a.jpg"))


@pytest.mark.parametrize("start", ["data:image/png;base64,", "DATA:image/png;name=a.png;base64,", "data:;base64,"])
def test_a_data_url_holds_its_file(start: str) -> None:
    data = encoded(Image.new("RGB", (8, 8)))
    assert read_data_url(start + base64.b64encode(data).decode()) == data


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("data:image/png;base64,AAA", "not valid base64"),
        ("data:image/png;base64,A A=", "not valid base64"),
        ("data:image/png;base64,\u00e4", "not valid base64"),
        ("data:image/png,%89PNG", "does not begin like"),
        ("data:text/html;base64,AAAA", "does not begin like"),
        ("data:image/png;base64", "does not begin like"),
    ],
)
def test_a_malformed_data_url_is_refused(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_data_url(url)


def test_a_data_url_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgaif_ray.images.MAX_DATA_URL_BYTES", 30)
    read_data_url("data:image/png;base64," + "A" * 40)
    with pytest.raises(ValueError, match="holds more than"):
        read_data_url("data:image/png;base64," + "A" * 48)


def test_files_that_are_left_out_are_counted_by_suffix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "b.HEIC", "c.heic", "d.txt", "e"):
        (tmp_path / name).touch()
    assert find_images(str(tmp_path)) == [str(tmp_path / "a.png")]
    assert "4 files are left out" in (said := capsys.readouterr().out)
    assert ".heic 2, .txt 1, no suffix 1" in said


def test_images_of_a_prompt_are_shown_side_by_side() -> None:
    red, blue = Image.new("RGB", (20, 10), "red"), Image.new("RGB", (10, 20), "blue")
    joined = side_by_side([red, blue])
    assert joined.height == 20
    assert (joined.getpixel((0, 10)), joined.getpixel((joined.width - 1, 10))) == ((255, 0, 0), (0, 0, 255))
    assert side_by_side([red]) is red
