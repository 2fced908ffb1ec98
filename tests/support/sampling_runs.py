"""A sampling run with the shipped policy over a folder of images."""

import shutil
from pathlib import Path
from typing import Any

from fgaif_ray.config import Config
from fgaif_ray.shapes.render import render
from fgaif_ray.shapes.scenes import draw_scene
from support.paths import ROOT

POLICY = ROOT / "fgaif_ray" / "shapes" / "checkpoints" / "policy"
GOOD_IMAGES = 40
MAX_TOKENS = 48
PROMPTS = ("Describe this image in detail.", "What can you see in this picture?")


def make_config(folder: Path, run: Path, **policy: Any) -> Config:
    engine = {
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": 32,
        "kv_cache_gib": 0.25,
        "enforce_eager": True,
        "threads": 1,
    }
    return Config.model_validate(
        {
            "run": {"dir": str(run), "seed": 3},
            "data": {"path": str(folder), "sample_images": 100, "evaluate_images": 1, "prompts": PROMPTS},
            "policy": {"model": str(POLICY)} | policy,
            "sample": {"max_tokens": MAX_TOKENS, "batch_size": 24, "engine": engine},
            "label": {"extractor": {"base_url": "http://127.0.0.1:9/v1", "model": "m"}, "verifier": {"model": "v"}},
            "rewards": {"backbone": str(POLICY)},
        }
    )


def write_images(folder: Path) -> None:
    """Images to sample first (poison among them), then as many again for the other sets of a run."""
    folder.mkdir()
    for index in range(GOOD_IMAGES):
        render(draw_scene("train", index)).save(folder / f"a{index:03d}.png")
    whole = (folder / "a000.png").read_bytes()
    (folder / "a900-truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "a901-text.jpg").write_text("not an image")
    (folder / "a902-empty.png").write_bytes(b"")
    shutil.copy(folder / "a000.png", folder / "a9015-repeated.png")  # same prompt: both indices are even
    for index in range(GOOD_IMAGES + 8):
        (folder / f"b{index:03d}.png").write_bytes(whole)
