"""The colours of all pages, on light and on dark: contrast as WCAG 2.2 asks for, computed from the style sheets."""

import re
from collections.abc import Mapping
from functools import cache

import pytest
from support.paths import ROOT

from fgaif_ray.fact_types import DEFAULT, colour_of, style_variables

SHEETS = {
    "report": "report/templates/report.css",
    "audit": "audit/templates/audit.css",
    "playground": "serving/playground/templates/playground.css",
    "experiment": "experiments/templates/experiment.css",
}
TEXT, PARTS = 4.5, 3.0
"""Least contrast of text (1.4.3), and of the parts of a page that must be told apart (1.4.11)."""

TEXT_PAIRS = [
    *((ink, ground) for ink in ("ink", "muted", "accent") for ground in ("page", "surface")),
    *((ink, "surface") for ink in ("good", "bad")),
    *((f"{name}-ink", f"{name}-tint") for name in ("right", "wrong", "warn")),
    ("muted", "sunken"),
    ("ink", "sunken"),
    ("surface", "wrong-ink"),
    ("on-accent", "accent"),
]
PART_PAIRS = [
    *((part, ground) for part in ("edge", "accent") for ground in ("page", "surface")),
    *((bar, "surface") for bar in ("good", "bad")),
    *((colour_of(one.name), "surface") for one in DEFAULT),
]


def read(sheet: str) -> str:
    return (ROOT / "fgaif_ray" / sheet).read_text(encoding="utf-8")


@cache
def colours(page: str, theme: str) -> Mapping[str, str]:
    """The variables of a page that are colours: light ones, and what is another colour in the dark."""
    found: dict[str, str] = {}
    for style in (style_variables(DEFAULT), read("pages/templates/base.css"), read(SHEETS[page])):
        themes = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[:2]
        for coloured in themes if theme == "dark" else themes[:1]:
            found |= dict(re.findall(r"--([\w-]+): *(#[0-9a-f]{6})", coloured))
    return found


def channels(colour: str) -> list[float]:
    return [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]


def mix(first: str, share: float, second: str) -> str:
    """``color-mix(in srgb, first share, second)``."""
    mixed = (share * a + (1 - share) * b for a, b in zip(channels(first), channels(second), strict=True))
    return "#" + "".join(f"{round(255 * value):02x}" for value in mixed)


def contrast(first: str, second: str) -> float:
    def luminance(colour: str) -> float:
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels(colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def too_close(page: str, theme: str, pairs: list[tuple[str, str]], least: float) -> list[tuple[str, str]]:
    known = colours(page, theme)
    return [(ink, ground) for ink, ground in pairs if contrast(known[ink], known[ground]) < least]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("page", SHEETS)
def test_text_can_be_read(page: str, theme: str) -> None:
    assert too_close(page, theme, TEXT_PAIRS, TEXT) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("page", SHEETS)
def test_controls_focus_and_bars_can_be_seen(page: str, theme: str) -> None:
    assert too_close(page, theme, PART_PAIRS, PARTS) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_marked_text_of_the_audit_can_be_read(theme: str) -> None:
    assert too_close("audit", theme, [("mark-ink", "mark")], TEXT) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("hit", [True, False])
def test_counts_can_be_read_on_the_strongest_heat(theme: str, hit: bool) -> None:
    known = colours("report", theme)
    rule = r"\.heat\.hit \{[^}]*" if hit else r"\.heat \{[^}]*"
    (share,) = re.findall(rule + r"var\(--heat\) \* (\d+)%\)", read(SHEETS["report"]))
    ground = mix(known["good" if hit else "bad"], int(share) / 100, known["sunken"])
    assert contrast(known["ink"], ground) >= TEXT


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_keys_on_the_main_button_can_be_read(theme: str) -> None:
    known = colours("audit", theme)
    (shade,) = re.findall(r"\.primary kbd \{ background: rgb\(0 0 0 / (\.\d+)\)", read("pages/templates/base.css"))
    assert contrast(known["on-accent"], mix("#000000", float(shade), known["accent"])) >= TEXT


@pytest.mark.parametrize("page", SHEETS)
def test_every_colour_is_a_variable_that_has_a_dark_form(page: str) -> None:
    both = read("pages/templates/base.css") + read(SHEETS[page])
    rules = re.sub(r":root \{.*?\}|@media print \{.*", "", both, flags=re.DOTALL)
    assert re.findall(r"#[0-9a-f]{3,8}\b", rules) == []


@pytest.mark.parametrize("page", SHEETS)
def test_every_variable_that_is_used_is_defined(page: str) -> None:
    sheets = [style_variables(DEFAULT), read("pages/templates/base.css"), read(SHEETS[page])]
    if page == "experiment":
        sheets.append(read(SHEETS["report"]))
    style = "".join(sheets)
    defined = set(re.findall(r"--([\w-]+):", style)) | {"heat"}  # given by each cell
    assert set(re.findall(r"var\(--([\w-]+)", style)) - defined == set()
