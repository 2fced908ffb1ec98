r"""Questions about images, in the format that a trainer reads.

    python examples/trainer_data.py verl runs/data       # or openrlhf, easyr1, skyrl

writes `train.parquet` (OpenRLHF: `train.jsonl`) and the images beside it: rendered scenes, so that the other examples
run as they are. Exchange `scenes` for images and questions of your own. TRL needs no file: examples/trl_grpo.py.

Where a row holds the path of an image, every node that computes rewards must be able to read it.
"""

import argparse
import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from fgaif_ray.serving.client import png_file
from fgaif_ray.shapes.render import render
from fgaif_ray.shapes.scenes import draw_scenes

QUESTION: Final = "Describe this image in detail."
Row = dict[str, Any]


def scenes(folder: Path, count: int) -> Iterator[tuple[Path, str]]:
    """Image files and what is asked about each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(draw_scenes("train", range(count))):
        path = folder / f"{number:06}.png"
        path.write_bytes(png_file(render(scene)))
        yield path.resolve(), QUESTION


def verl_row(image: Path, question: str) -> Row:
    """For verl, which finds the image at `<image>`, while the reward function finds both in `extra_info`."""
    return {
        "data_source": "fgaif",
        "prompt": [{"role": "user", "content": f"<image>{question}"}],
        "images": [{"bytes": image.read_bytes()}],
        "ability": "description",
        "reward_model": {"style": "rule", "ground_truth": ""},
        "extra_info": {"split": "train", "question": question, "image": str(image)},
    }


def openrlhf_row(image: Path, question: str) -> Row:
    """OpenRLHF shows a reward function nothing but the label: `--data.label_key reference`."""
    return {"prompt": f"<image>{question}", "images": [str(image)], "reference": reference(image, question)}


def easyr1_row(image: Path, question: str) -> Row:
    """EasyR1 shows a reward function nothing but the answer: `data.answer_key=reference`."""
    images = [{"bytes": image.read_bytes()}]
    return {"problem": f"<image>{question}", "images": images, "reference": reference(image, question)}


def skyrl_row(image: Path, question: str) -> Row:
    """SkyRL's prompts hold their images as data URLs; `one_answer` is registered by examples/skyrl_rewards.py."""
    url = "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return {"prompt": [{"role": "user", "content": content}], "env_class": "one_answer"}


def reference(image: Path, question: str) -> str:
    """What the reward function needs, as JSON."""
    return json.dumps({"image": str(image), "prompt": question})


ROWS: Final[dict[str, Callable[[Path, str], Row]]] = {
    "verl": verl_row,
    "openrlhf": openrlhf_row,
    "easyr1": easyr1_row,
    "skyrl": skyrl_row,
}


def write_rows(trainer: str, folder: Path, count: int) -> Path:
    """Write the rows; returns their file."""
    rows = [ROWS[trainer](image, question) for image, question in scenes(folder / "images", count)]
    if trainer == "openrlhf":
        path = folder / "train.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    else:
        path = folder / "train.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def main() -> None:
    """Write the rows that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainer", choices=ROWS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=256, help="images")
    options = parser.parse_args()
    print(write_rows(options.trainer, options.folder, options.count))


if __name__ == "__main__":
    main()
