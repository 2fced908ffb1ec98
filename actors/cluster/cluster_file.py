"""Validation of a cluster file by Ray itself. The functions are private to Ray and are called only here."""

import logging
from pathlib import Path
from typing import Any

import yaml

from fgaif_ray.errors import UserError


def check_cluster_file(path: str | Path) -> dict[str, Any]:
    """Validate a Ray cluster file as `ray up` does before it talks to a cloud; the content of ``node_config`` is not
    checked.

    Returns:
        The file with Ray's defaults filled in.

    Raises:
        UserError: Ray would refuse it; the message says where.
    """
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    logging.getLogger("ray.autoscaler._private.util").setLevel(logging.WARNING)
    try:
        prepared: dict[str, Any] = prepare_config(tree)
        validate_config(prepared)
    except jsonschema.ValidationError as error:
        place = ".".join(str(part) for part in error.absolute_path)
        message = f"{path}: {place + ': ' if place else ''}{error.message}"
        raise UserError(f"{message.rstrip('.')}: Ray's schema of cluster files does not allow it.") from error
    except (ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{path}: Ray refuses it: {str(error).rstrip('.')}.") from error
    return prepared
