"""Sources of a run's images and prompts, and the truth about them where it is known."""

from fgaif_ray.config import Config
from fgaif_ray.images import find_images
from fgaif_ray.sources.coco import find_coco_images
from fgaif_ray.sources.row import PROVIDED_SCHEMA, ProvidedResponse
from fgaif_ray.sources.rows import prepare_rows, provided_responses
from fgaif_ray.sources.sets import Images, ImageSets, cut
from fgaif_ray.sources.shapes import load_truth, prepare_shapes

__all__ = [
    "PROVIDED_SCHEMA",
    "ImageSets",
    "Images",
    "ProvidedResponse",
    "load_truth",
    "prepare_images",
    "provided_responses",
]


def prepare_images(config: Config) -> ImageSets:
    """Find the images of a run and cut them into its three sets; equal sources are cut equally.

    The embedded world draws its images, and rows that hold images store them, on the first call.

    Raises:
        UserError: the source is missing, empty, or too small to be cut into the three sets.
    """
    data = config.data
    if data.source == "shapes":
        return prepare_shapes(config)
    if data.source in ("rows", "dataset"):
        return prepare_rows(config)
    assert data.path is not None  # the configuration checks it
    images = find_coco_images(data) if data.source == "coco" else find_images(data.path)
    return cut([(image,) for image in images], data, f"The image folder {data.path}")
