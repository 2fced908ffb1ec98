"""Scenes: the content of an image of the embedded world, drawn from a seed."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

SHAPES: Final = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
COLORS: Final = ("red", "green", "blue", "yellow", "purple", "orange")
SIZES: Final = ("small", "large")
GRID: Final = 3
"""Objects sit in the cells of a GRID x GRID board, one a cell, each shape at most once a scene."""

UNSEEN_PAIRS: Final = frozenset(
    {
        ("star", "purple"),
        ("heart", "green"),
        ("ring", "orange"),
        ("cross", "yellow"),
        ("circle", "blue"),
        ("square", "red"),
    }
)
"""Shape-colour pairs that occur in no split but ``unseen_pairs``, where every scene holds at least one."""

OBJECT_COUNTS: Final = {2: 0.25, 3: 0.35, 4: 0.25, 5: 0.15}
FOG_STRENGTH: Final = (0.45, 0.65)

Split = Literal["pretrain", "train", "heldout", "unseen_pairs", "fog"]


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object: shape, colour, size and the cell (row, column) it sits in."""

    shape: str
    color: str
    size: str
    row: int
    column: int


@dataclass(frozen=True, slots=True)
class Scene:
    """The objects of one image in reading order, the fog over it (0 none, 1 opaque) and the seed of its rendering.

    Example: ``Scene((SceneObject("circle", "red", "large", 0, 1),), fog=0.0, seed=7)``
    """

    objects: tuple[SceneObject, ...]
    fog: float
    seed: int

    def find(self, shape: str) -> SceneObject | None:
        """Return the object of this shape, or None."""
        return next((item for item in self.objects if item.shape == shape), None)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form; ``from_dict`` reads it back."""
        objects = [
            {"shape": o.shape, "color": o.color, "size": o.size, "row": o.row, "column": o.column} for o in self.objects
        ]
        return {"objects": objects, "fog": self.fog, "seed": self.seed}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read what ``to_dict`` wrote."""
        return cls(tuple(SceneObject(**item) for item in data["objects"]), data["fog"], data["seed"])


def _allowed_colors(shape: str) -> list[str]:
    return [color for color in COLORS if (shape, color) not in UNSEEN_PAIRS]


def draw_scene(split: Split, index: int, seed: int = 0) -> Scene:
    """Draw scene number ``index`` of a split; the same arguments give the same scene on every machine."""
    generator = random.Random(f"{split}/{seed}/{index}")
    count = generator.choices(list(OBJECT_COUNTS), weights=list(OBJECT_COUNTS.values()))[0]
    shapes: Sequence[str] = generator.sample(SHAPES, count)
    cells = generator.sample(range(GRID * GRID), count)
    colors = {shape: generator.choice(_allowed_colors(shape)) for shape in shapes}
    if split == "unseen_pairs":
        pairs = sorted(UNSEEN_PAIRS)
        shape, color = generator.choice(pairs)
        if shape not in colors:
            colors[shape] = colors.pop(shapes[0])
        colors[shape] = color
    objects = [
        SceneObject(shape, color, generator.choice(SIZES), cell // GRID, cell % GRID)
        for (shape, color), cell in zip(colors.items(), cells, strict=True)
    ]
    objects.sort(key=lambda item: (item.row, item.column))
    fog = generator.uniform(*FOG_STRENGTH) if split == "fog" else 0.0
    return Scene(tuple(objects), fog, generator.getrandbits(31))


def draw_scenes(split: Split, indices: Iterable[int], seed: int = 0) -> list[Scene]:
    """``draw_scene`` for several indices."""
    return [draw_scene(split, index, seed) for index in indices]
