"""Rows and pictures that the tests of sources read."""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from fgaif_ray.config import Config

SIZES = {"sample_images": 4, "align_images": 3, "evaluate_images": 2}
IMAGE_STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def configure(run: Path, **data: Any) -> Config:
    return Config.model_validate(
        {
            "run": {"dir": str(run)},
            "data": SIZES | {"source": "rows"} | data,
            "policy": {"model": "policy"},
            "label": {"extractor": {"base_url": "http://127.0.0.1:9/v1", "model": "m"}, "verifier": {"model": "v"}},
            "rewards": {"backbone": "backbone"},
        }
    )


def picture(shade: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, format=kind)
    return buffer.getvalue()


def write_pictures(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{index:02d}.png" for index in range(count)]
    for index, name in enumerate(names):
        (folder / name).write_bytes(picture(index))
    return names


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def plain_rows(folder: Path, count: int = 12) -> list[dict[str, Any]]:
    """One row per image, every third with a response."""
    return [
        {"image": name, "prompt": f"Prompt {index}?"} | ({"response": f"Answer {index}."} if index % 3 == 0 else {})
        for index, name in enumerate(write_pictures(folder, count))
    ]


def names(part: Iterable[tuple[str, ...]]) -> list[str]:
    """Names of the images of a set, of which each stands alone."""
    return [image.rsplit("/", 1)[-1] for (image,) in part]


def embedded_table(rows: list[dict[str, Any]], struct: bool) -> pa.Table:
    images = [picture(index // 2, "JPEG" if index % 4 < 2 else "PNG") for index in range(len(rows))]  # two rows each
    values = [{"bytes": image, "path": None} for image in images] if struct else images
    return pa.table(
        {
            "image": pa.array(values, IMAGE_STRUCT if struct else pa.binary()),
            "prompt": [row["prompt"] for row in rows],
            "response": pa.array([row.get("response") for row in rows], pa.string()),
        }
    )
