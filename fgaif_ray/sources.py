"""Where a run's images come from, and the truth about them where it is known."""

import io
import json
from dataclasses import dataclass

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.images import find_images
from fgaif_ray.progress import Progress
from fgaif_ray.records import fingerprint
from fgaif_ray.shapes.render import render
from fgaif_ray.shapes.scenes import Scene, Split, draw_scene

STAGE = "images"
TRUTH_FILE = "scenes.jsonl"


@dataclass(frozen=True, slots=True)
class ImageSets:
    """Disjoint lists of image paths: to sample and label, to align on, and to evaluate on."""

    sample: list[str]
    align: list[str]
    evaluate: list[str]


def _shapes_plan(config: Config) -> list[tuple[str, Split, int]]:
    data = config.data
    train = data.sample_images + data.align_images
    plan: list[tuple[str, Split, int]] = [(f"train-{i:06d}.png", "train", i) for i in range(train)]
    return plan + [(f"heldout-{i:06d}.png", "heldout", i) for i in range(data.evaluate_images)]


def _draw_shapes(config: Config) -> str:
    data = config.data
    stage = storage.Stage(
        config.run.dir,
        STAGE,
        fingerprint("shapes-1", config.run.seed, data.sample_images, data.align_images, data.evaluate_images),
    )
    if stage.is_complete():
        return stage.folder
    stage.begin()
    plan = _shapes_plan(config)
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


def prepare_images(config: Config) -> ImageSets:
    """The images of a run; the embedded world draws its own on the first call.

    A folder is cut by sorted path: the last images are held out for evaluation, the first are sampled and labelled, and
    those in between serve PPO.

    Raises:
        UserError: the folder is missing, empty, or too small to be cut into the three sets.
    """
    data = config.data
    if data.source == "shapes":
        folder = _draw_shapes(config)
        paths = [storage.join(folder, name) for name, _, _ in _shapes_plan(config)]
        train = data.sample_images + data.align_images
        return ImageSets(paths[: data.sample_images], paths[data.sample_images : train], paths[train:])
    assert data.path is not None  # the configuration checks it
    paths = find_images(data.path)
    held_out = min(data.evaluate_images, len(paths) // 5)
    sampled = min(data.sample_images, (len(paths) - held_out) // 2)
    if min(held_out, sampled) < 1:
        raise UserError(f"The image folder {data.path} holds {len(paths)} images; give at least 5.")
    train_paths = paths[: len(paths) - held_out]
    return ImageSets(train_paths[:sampled], train_paths[sampled:][: data.align_images], paths[len(paths) - held_out :])


def load_truth(config: Config) -> dict[str, Scene] | None:
    """The scene behind each image path, or None for images whose truth is not known."""
    if config.data.source != "shapes":
        return None
    folder = _draw_shapes(config)
    lines = storage.read_bytes(storage.join(folder, TRUTH_FILE)).decode().splitlines()
    entries = [json.loads(line) for line in lines]
    return {storage.join(folder, entry["image"]): Scene.from_dict(entry["scene"]) for entry in entries}
