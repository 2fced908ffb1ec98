"""Scenes to images, with Pillow: jittered place, size, angle, colour and background, so that no two look alike."""

import math
import random
from collections.abc import Callable
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from fgaif_ray.shapes.scenes import GRID, Scene, SceneObject

IMAGE_SIZE: Final = 60
CELL_SIZE: Final = IMAGE_SIZE // GRID
_SUPERSAMPLING: Final = 4
_BASE_COLORS: Final = {
    "red": (215, 40, 40),
    "green": (45, 160, 60),
    "blue": (45, 85, 215),
    "yellow": (235, 215, 50),
    "purple": (145, 55, 175),
    "orange": (240, 135, 30),
}
_RADII: Final = {"small": (4.8, 5.6), "large": (7.4, 8.8)}

Point = tuple[float, float]
Color = tuple[int, int, int]


def _polygon(angles_and_radii: list[tuple[float, float]]) -> list[Point]:
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle, radius in angles_and_radii]


def _regular(corners: int, radius: float, start: float = -math.pi / 2) -> list[Point]:
    return _polygon([(start + 2 * math.pi * i / corners, radius) for i in range(corners)])


def _star(radius: float) -> list[Point]:
    return _polygon([(-math.pi / 2 + math.pi * i / 5, radius * (1.1 if i % 2 == 0 else 0.45)) for i in range(10)])


def _cross(radius: float) -> list[Point]:
    arm, half = radius, radius * 0.36
    return [
        (-half, -arm), (half, -arm), (half, -half), (arm, -half), (arm, half), (half, half),
        (half, arm), (-half, arm), (-half, half), (-arm, half), (-arm, -half), (-half, -half),
    ]  # fmt: skip


def _heart(radius: float) -> list[Point]:
    points = []
    for i in range(40):
        t = 2 * math.pi * i / 40
        x = 16 * math.sin(t) ** 3
        y = -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
        points.append((x * radius / 16, y * radius / 16))
    return points


_OUTLINES: Final[dict[str, Callable[[float], list[Point]]]] = {
    "circle": lambda radius: _regular(40, radius),
    "ring": lambda radius: _regular(40, radius),
    "square": lambda radius: _regular(4, radius * 1.2, math.pi / 4),
    "diamond": lambda radius: [(0, -radius * 1.15), (radius * 0.7, 0), (0, radius * 1.15), (-radius * 0.7, 0)],
    "triangle": lambda radius: _regular(3, radius * 1.15),
    "star": _star,
    "cross": _cross,
    "heart": _heart,
}


def _draw_object(draw: ImageDraw.ImageDraw, item: SceneObject, background: Color, generator: random.Random) -> None:
    radius = generator.uniform(*_RADII[item.size])
    room = max(CELL_SIZE / 2 - radius - 0.5, 0.0)
    center_x = (item.column + 0.5) * CELL_SIZE + generator.uniform(-room, room)
    center_y = (item.row + 0.5) * CELL_SIZE + generator.uniform(-room, room)
    angle = math.radians(generator.uniform(-10, 10))
    fill = tuple(min(255, max(0, round(c + generator.gauss(0, 10)))) for c in _BASE_COLORS[item.color])

    def place(points: list[Point]) -> list[Point]:
        return [
            (
                (center_x + x * math.cos(angle) - y * math.sin(angle)) * _SUPERSAMPLING,
                (center_y + x * math.sin(angle) + y * math.cos(angle)) * _SUPERSAMPLING,
            )
            for x, y in points
        ]

    draw.polygon(place(_OUTLINES[item.shape](radius)), fill=fill)
    if item.shape == "ring":
        draw.polygon(place(_regular(40, radius * 0.55)), fill=background)


def render(scene: Scene) -> Image.Image:
    """Render a scene to an RGB image of IMAGE_SIZE x IMAGE_SIZE pixels; the same scene gives the same pixels."""
    generator = random.Random(scene.seed)
    tone = generator.choice([generator.randint(195, 250), generator.randint(10, 60)])
    background: Color = tuple(min(255, max(0, tone + generator.randint(-10, 10))) for _ in range(3))  # type: ignore[assignment]
    size = IMAGE_SIZE * _SUPERSAMPLING
    canvas = Image.new("RGB", (size, size), background)
    draw = ImageDraw.Draw(canvas)
    for item in scene.objects:
        _draw_object(draw, item, background, generator)
    small = canvas.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.float32)  # [IMAGE_SIZE, IMAGE_SIZE, 3]
    noise = np.random.default_rng(scene.seed)
    slope = np.linspace(-1, 1, IMAGE_SIZE, dtype=np.float32) * noise.uniform(-12, 12)
    pixels = pixels + slope[None, :, None] + noise.normal(0, 4, pixels.shape).astype(np.float32)
    if scene.fog > 0:
        pixels = (1 - scene.fog) * pixels + scene.fog * noise.uniform(185, 215)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
