"""What an engine has to know of a LoRA adapter before it loads it."""

from fgaif_ray import storage
from fgaif_ray.errors import UserError


def adapter_rank(adapter: str) -> int:
    """Rank of a LoRA adapter in a folder.

    Raises:
        UserError: there is none.
    """
    uri = storage.join(adapter, "adapter_config.json")
    try:
        return int(storage.read_json(uri)["r"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{adapter} holds no LoRA adapter ({uri}): align the policy again with jobs.align.") from error
