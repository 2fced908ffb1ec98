"""One budget of pixels: images are scaled to it when they are opened, and only where they are outside it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageStat
from support.image_files import encoded

from fgaif_ray.images import MAX_ASPECT, decode_image, load_image
from fgaif_ray.pixel_budget import SMALLEST_BUDGET, PixelBudget

NOISE = Image.effect_noise((1200, 500), 60).convert("RGB")


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@given(
    width=st.integers(1, 10_000),
    aspect=st.floats(1 / MAX_ASPECT, MAX_ASPECT),
    fewest=st.none() | st.integers(SMALLEST_BUDGET, 10**6),
    more=st.none() | st.integers(0, 10**7),
)
def test_sizes_lie_within_the_budget(width: int, aspect: float, fewest: int | None, more: int | None) -> None:
    height = max(1, round(width / aspect))
    most = None if more is None else 2 * (fewest or SMALLEST_BUDGET) + more
    budget = PixelBudget(fewest, most)
    scaled = budget.size_of(width, height)
    assert (fewest or 0) <= scaled[0] * scaled[1] <= (most or math.inf)
    assert budget.size_of(*scaled) == scaled
    assert budget.size_of(height, width) == scaled[::-1]


def test_an_image_within_the_budget_is_left_as_it_is() -> None:
    assert decode_image(encoded(NOISE), PixelBudget(1000, 600_000)).tobytes() == NOISE.tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(("orientation", "size"), [(1, (154, 64)), (6, (64, 154))])
def test_a_larger_image_is_scaled_down_in_its_aspect(kind: str, orientation: int, size: tuple[int, int]) -> None:
    data = encoded(NOISE, kind, exif=with_orientation(orientation))
    assert decode_image(data, PixelBudget(max=10_000)).size == size


def test_a_smaller_image_is_scaled_up_in_its_aspect() -> None:
    data = encoded(Image.new("RGB", (20, 10)))
    assert decode_image(data, PixelBudget(min=20_000)).size == (200, 100)


def test_details_are_averaged_not_dropped() -> None:
    """Stripes of one pixel become grey; a nearest-neighbour filter would keep them black or white."""
    stripes = Image.new("L", (600, 600))
    stripes.putdata([255 * (index % 2) for index in range(600 * 600)])
    scaled = decode_image(encoded(stripes), PixelBudget(max=10_000)).convert("L")
    low, high = ImageStat.Stat(scaled).extrema[0]
    assert 100 < low <= high < 156


def test_colours_of_a_palette_are_averaged_too() -> None:
    stripes = Image.new("P", (600, 600))
    stripes.putpalette([0, 0, 0, 255, 255, 255])
    stripes.putdata([index % 2 for index in range(600 * 600)])
    low, high = ImageStat.Stat(decode_image(encoded(stripes), PixelBudget(max=10_000)).convert("L")).extrema[0]
    assert 100 < low <= high < 156


def test_a_jpeg_that_is_decoded_at_a_fraction_looks_the_same() -> None:
    gradient = Image.linear_gradient("L").resize((2048, 2048)).convert("RGB")
    budget = PixelBudget(max=128 * 128)
    drafted, whole = (decode_image(encoded(gradient, kind), budget) for kind in ("JPEG", "PNG"))
    assert drafted.size == whole.size == (128, 128)
    differences = [abs(one - other) for one, other in zip(drafted.tobytes(), whole.tobytes(), strict=True)]
    assert max(differences) <= 3


def test_a_large_jpeg_is_not_decoded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[tuple[int, int]] = []
    load = Image.Image.convert

    def convert(image: Image.Image, *arguments: object, **options: object) -> Image.Image:
        loaded.append(image.size)
        return load(image, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "convert", convert)
    decode_image(encoded(Image.new("RGB", (1600, 1600)), "JPEG"), PixelBudget(max=10_000))
    assert loaded[-1] == (200, 200)


def test_a_path_is_opened_within_the_budget(tmp_path) -> None:
    NOISE.save(tmp_path / "a.png")
    assert load_image(str(tmp_path / "a.png"), PixelBudget(max=10_000)).size == (154, 64)
