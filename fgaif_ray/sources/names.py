"""Names of sources of images, for those who have to know what a model was trained on."""

from fgaif_ray.config import DataConfig


def source_name(data: DataConfig) -> str:
    """The kind of a source and the last part of its path, which tells no more of a machine.

    Example: ``coco train2014``; ``shapes`` are the coloured shapes of the embedded world.
    """
    if data.source == "shapes" or data.path is None:
        return data.source
    return f"{data.source} {data.path.rstrip('/').rsplit('/', 1)[-1]}"
