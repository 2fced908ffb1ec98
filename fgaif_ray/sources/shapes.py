"""The embedded world as a source: it draws its own images, and knows the truth about them.

Scenes of training and evaluation are one stage folder. Augmented training images, and scenes of other splits to
evaluate on, are stages beside it: what they have in common with another run keeps its paths.
"""

import io
import json
from collections.abc import Sequence
from typing import Final

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.progress import Progress
from fgaif_ray.shapes.augmentation import augment
from fgaif_ray.shapes.render import render
from fgaif_ray.shapes.scenes import Scene, Split, draw_scene
from fgaif_ray.sources.sets import ImageSets, may_replace_images
from fgaif_ray.storage import stages

TRUTH_FILE: Final = "scenes.jsonl"
_HELDOUT: Final = "heldout"


def _stages(config: Config) -> list[tuple[storage.Stage, list[tuple[str, Split, int]], float]]:
    """The stages of these images, their scenes, and the share of their images that is augmented."""
    data = config.data
    count = data.sample_images + data.align_images
    train: list[tuple[str, Split, int]] = [(f"train-{i:06d}.png", "train", i) for i in range(count)]
    heldout: list[tuple[str, Split, int]] = [
        (f"{_HELDOUT}-{i:06d}.png", "heldout", i) for i in range(data.evaluate_images)
    ]
    plans = [(stages.images_of_shapes(config), train + heldout, 0.0)]
    if data.shapes.augmented:
        plans.append((stages.augmented_shapes(config), train, data.shapes.augmented))
    split = data.shapes.evaluate_split
    if split != _HELDOUT:
        scenes: list[tuple[str, Split, int]] = [(f"{split}-{i:06d}.png", split, i) for i in range(data.evaluate_images)]
        plans.append((stages.split_shapes(config), scenes, 0.0))
    return plans


def _draw(
    stage: storage.Stage, plan: Sequence[tuple[str, Split, int]], augmented: float, seed: int, overwrite: bool
) -> None:
    if stage.is_complete():
        return
    stage.begin(overwrite=overwrite)
    truth: list[str] = []
    with Progress("draw scenes", len(plan), "images") as progress:
        for name, split, index in plan:
            scene = draw_scene(split, index, seed)
            image = render(scene)
            if augmented:
                image = augment(image, f"{seed}/{name}", augmented)
            buffer = io.BytesIO()
            image.save(buffer, format="PNG")
            storage.write_image(storage.join(stage.partial, name), buffer.getvalue())
            truth.append(json.dumps({"image": name, "split": split, "scene": scene.to_dict()}))
            progress.advance()
    storage.write_bytes(storage.join(stage.partial, TRUTH_FILE), ("\n".join(truth) + "\n").encode())
    stage.publish({"images": len(plan)})


def prepare_shapes(config: Config) -> ImageSets:
    """Scenes for the three sets; evaluation has its own, held out from training."""
    paths: dict[str, list[tuple[str, ...]]] = {}
    for stage, plan, augmented in _stages(config):
        _draw(stage, plan, augmented, config.run.seed, may_replace_images(config))
        of_stage: dict[str, list[tuple[str, ...]]] = {}
        for name, split, _ in plan:
            of_stage.setdefault(split, []).append((storage.join(stage.folder, name),))
        paths |= of_stage  # augmented training images take the place of the plain ones
    train = paths["train"]
    sampled = config.data.sample_images
    return ImageSets(train[:sampled], train[sampled:], paths[config.data.shapes.evaluate_split])


def load_truth(config: Config) -> dict[str, Scene] | None:
    """Return the scene behind each image path, or None for images whose truth is unknown."""
    if config.data.source != "shapes":
        return None
    truth: dict[str, Scene] = {}
    for stage, plan, augmented in _stages(config):
        _draw(stage, plan, augmented, config.run.seed, may_replace_images(config))
        lines = storage.read_bytes(storage.join(stage.folder, TRUTH_FILE)).decode().splitlines()
        for entry in map(json.loads, lines):
            truth[storage.join(stage.folder, entry["image"])] = Scene.from_dict(entry["scene"])
    return truth
