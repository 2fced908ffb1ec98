"""The embedded world as a source: it draws its own images, and knows the truth about them."""

import io
import json
from typing import Final

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.progress import Progress
from fgaif_ray.records import fingerprint
from fgaif_ray.shapes.render import render
from fgaif_ray.shapes.scenes import Scene, Split, draw_scene
from fgaif_ray.sources.sets import STAGE, ImageSets

TRUTH_FILE: Final = "scenes.jsonl"


def _plan(config: Config) -> list[tuple[str, Split, int]]:
    data = config.data
    train = data.sample_images + data.align_images
    plan: list[tuple[str, Split, int]] = [(f"train-{i:06d}.png", "train", i) for i in range(train)]
    return plan + [(f"heldout-{i:06d}.png", "heldout", i) for i in range(data.evaluate_images)]


def _draw(config: Config) -> str:
    data = config.data
    stage = storage.Stage(
        config.run.dir,
        STAGE,
        fingerprint("shapes-1", config.run.seed, data.sample_images, data.align_images, data.evaluate_images),
    )
    if stage.is_complete():
        return stage.folder
    stage.begin()
    plan = _plan(config)
    truth: list[str] = []
    with Progress("draw scenes", len(plan), "images") as progress:
        for name, split, index in plan:
            scene = draw_scene(split, index, config.run.seed)
            buffer = io.BytesIO()
            render(scene).save(buffer, format="PNG")
            storage.write_image(storage.join(stage.partial, name), buffer.getvalue())
            truth.append(json.dumps({"image": name, "split": split, "scene": scene.to_dict()}))
            progress.advance()
    storage.write_bytes(storage.join(stage.partial, TRUTH_FILE), ("\n".join(truth) + "\n").encode())
    stage.publish({"images": len(plan)})
    return stage.folder


def prepare_shapes(config: Config) -> ImageSets:
    """Scenes for the three sets; evaluation has its own, held out from training."""
    folder = _draw(config)
    paths = [storage.join(folder, name) for name, _, _ in _plan(config)]
    sampled = config.data.sample_images
    train = sampled + config.data.align_images
    return ImageSets(paths[:sampled], paths[sampled:train], paths[train:])


def load_truth(config: Config) -> dict[str, Scene] | None:
    """The scene behind each image path, or None for images whose truth is not known."""
    if config.data.source != "shapes":
        return None
    folder = _draw(config)
    lines = storage.read_bytes(storage.join(folder, TRUTH_FILE)).decode().splitlines()
    entries = [json.loads(line) for line in lines]
    return {storage.join(folder, entry["image"]): Scene.from_dict(entry["scene"]) for entry in entries}
