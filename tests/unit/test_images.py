"""Images that strangers supply: normalised or refused with a reason, never fatal."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from support.image_files import claimed_png, encoded

from fgaif_ray.errors import UserError
from fgaif_ray.images import decode_image, find_images, load_image


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


def test_files_that_are_left_out_are_counted_by_suffix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "b.HEIC", "c.heic", "d.txt", "e"):
        (tmp_path / name).touch()
    assert find_images(str(tmp_path)) == [str(tmp_path / "a.png")]
    assert "4 files are left out" in (said := capsys.readouterr().out)
    assert ".heic 2, .txt 1, no suffix 1" in said
