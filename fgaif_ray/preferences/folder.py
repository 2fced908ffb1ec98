"""A folder with preference pairs for other trainers: one file of rows, a card, and what a trainer wants beside them."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.images import load_image, read_image_file
from fgaif_ray.preferences.formats import FORMATS, PreferenceFormat
from fgaif_ray.preferences.pair import Form, PreferencePair
from fgaif_ray.storage.data_set import IMAGE_LIST, with_features

Kind = Literal["jsonl", "parquet"]
KINDS: Final[tuple[Kind, ...]] = ("jsonl", "parquet")
ROWS_AT_A_TIME: Final = 256
"""Rows that are in memory with their images."""
DATASET: Final = "fgaif_preferences"
"""Name of the data set in LLaMA-Factory's ``dataset_info.json``."""
_PATHS: Final = pa.list_(pa.string())


def write_pairs(
    pairs: Sequence[PreferencePair], folder: str, config: Config, form: Form, style: str, kind: Kind, embed: bool
) -> None:
    """Write a folder that is not there yet; it appears when it is complete.

    Args:
        pairs: at least one, all of one form.
        folder: a local path or URI.
        config: that they were made with, for the card.
        form: of the pairs.
        style: name of one of ``FORMATS``.
        kind: of the file.
        embed: whether the images' files are in the rows, in place of their paths.

    Raises:
        UserError: the folder is there, an image to embed cannot be used, or the trainer does not read such a file.
    """
    if embed and (style != "trl" or kind != "parquet"):
        raise UserError("Images are embedded in Parquet for TRL alone: add --file parquet, or leave --embed out.")
    if style == "ms-swift" and kind != "jsonl":
        raise UserError("ms-swift reads JSON lines: leave --file out.")
    if storage.exists(folder):
        raise UserError(f"{folder} is there already: give a folder that is not, or remove it.")
    layout = FORMATS[style]
    place = os.path.dirname(os.path.abspath(folder.removeprefix("file://"))) if storage.is_local(folder) else None
    if place is not None:
        os.makedirs(place, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fgaif-preferences-", dir=place) as unfinished:
        local = Path(unfinished, "preferences")
        local.mkdir()
        if kind == "jsonl":
            _write_lines(pairs, layout, local / "train.jsonl")
        else:
            _write_parquet(pairs, layout, local / "train.parquet", embed)
        if style == "llama-factory":
            (local / "dataset_info.json").write_text(json.dumps(dataset_info(kind), indent=2), encoding="utf-8")
        (local / "README.md").write_text(_card(pairs, config, form, style, kind, embed), encoding="utf-8")
        if place is not None:
            local.rename(folder.removeprefix("file://"))
        else:
            storage.upload_folder(str(local), folder)


def dataset_info(kind: Kind) -> dict[str, Any]:
    """The description with which LLaMA-Factory reads the rows (its ``data/README.md``)."""
    return {
        DATASET: {
            "file_name": f"train.{kind}",
            "formatting": "sharegpt",
            "ranking": True,
            "columns": {"messages": "messages", "chosen": "chosen", "rejected": "rejected", "images": "images"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "system_tag": "system",
            },
        }
    }


def _write_lines(pairs: Sequence[PreferencePair], layout: PreferenceFormat, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for pair in pairs:
            row = {"images": list(map(_absolute, pair.images)), **layout.to_row(pair)}
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def _write_parquet(pairs: Sequence[PreferencePair], layout: PreferenceFormat, path: Path, embed: bool) -> None:
    plain = layout.name != "trl"
    schema = layout.schema(_PATHS if plain else IMAGE_LIST)
    schema = with_features(schema, () if plain else ("images",))
    shown: Callable[[str], Any] = _absolute if plain else _embedded if embed else _referenced
    iterator: Iterator[PreferencePair] = iter(pairs)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while some := list(islice(iterator, ROWS_AT_A_TIME)):
            rows = [{"images": list(map(shown, pair.images)), **layout.to_row(pair)} for pair in some]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _absolute(image: str) -> str:
    return os.path.abspath(image.removeprefix("file://")) if storage.is_local(image) else image


def _referenced(image: str) -> dict[str, Any]:
    return {"bytes": None, "path": _absolute(image)}


def _embedded(image: str) -> dict[str, Any]:
    load_image(image)  # what could not be opened there is said here
    return {"bytes": read_image_file(image), "path": os.path.basename(image)}


_TOLD: Final[dict[Form, str]] = {
    "response": (
        "Whole responses: of those to one image and prompt the best is paired with the worst, the second with the "
        "second worst, and so on. The better one says something true."
    ),
    "segment": (
        "Single segments after the same context (SENTINEL, arXiv 2507.12455): nothing in the context is labelled as "
        "hallucinated, the better segment neither and says something true, and the worse one is hallucinated. "
        "`chosen` and `rejected` both begin with the context, which cancels out in the loss of DPO."
    ),
}


def _card(pairs: Sequence[PreferencePair], config: Config, form: Form, style: str, kind: Kind, embed: bool) -> str:
    dpo = config.align.dpo
    margin = sum(pair.margin for pair in pairs) / len(pairs)
    return f"""---
configs:
- config_name: default
  data_files: train.{kind}
task_categories: [image-text-to-text]
tags: [preference, dpo, vision-language, hallucination]
---
# Preferences from fine-grained AI feedback

{len(pairs)} pairs of responses of `{pairs[0].chosen.response.model}` to images, chosen and rejected by labels of
what is true of the image. Format: {style}. {_TOLD[form]}

A response is worth what the reward of PPO would pay if the reward models said what the labels say
(`align.reward`). The better of a pair is worth at least {dpo.margin:g} more, {margin:.2f} on average, and a prompt has
at most {dpo.pairs_per_prompt} pairs. Labels: {", ".join(config.run.type_names)}. Method: FGAIF (arXiv 2404.05046).

{_usage(style, kind, embed)}
"""


def _usage(style: str, kind: Kind, embed: bool) -> str:
    if style == "llama-factory":
        return f"LLaMA-Factory: `dataset_dir: THIS FOLDER`, `dataset: {DATASET}`, `stage: dpo`."
    if style == "ms-swift":
        return "ms-swift: `swift rlhf --rlhf_type dpo --dataset THIS_FOLDER/train.jsonl ...`."
    opened = "" if kind == "parquet" else '.cast_column("images", List(Image()))'
    imports = "load_dataset" if kind == "parquet" else "Image, List, load_dataset"
    loader = "json" if kind == "jsonl" else kind
    kept = "" if embed else "\nThe images are where they were when this was written.\n"
    return f"""```python
from datasets import {imports}
from trl import DPOConfig, DPOTrainer

pairs = load_dataset("{loader}", data_files="THIS FOLDER/train.{kind}", split="train"){opened}
DPOTrainer(MODEL, args=DPOConfig(max_length=None), train_dataset=pairs, peft_config=...).train()
```
{kept}"""
