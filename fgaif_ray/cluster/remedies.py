"""Settings with which an actor takes no more of a GPU than it may, found by trying them."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Final

from fgaif_ray.cluster.actor_memory import GIB, Footprint, footprint
from fgaif_ray.cluster.resources import ResourceRequest
from fgaif_ray.config import Config, EngineConfig, change_config
from fgaif_ray.errors import UserError

CHECKPOINTED: Final = "align.activation_checkpointing=true"
SHARDED: Final = "align.sharding=full"
TRIED: Final[Mapping[str, Sequence[Sequence[Sequence[str]]]]] = {
    "Learner": (((), (CHECKPOINTED,)), ((SHARDED,), (SHARDED, CHECKPOINTED))),
    "RewardTrainer": (((),), (("rewards.quantisation=4bit",),)),
}
"""By actor; all that help of the first group with one that helps are named, each with the largest batch that fits."""


def remedy(config: Config, request: ResourceRequest, found: Footprint, gpu: int, room: int) -> str | None:
    """Settings that make an actor fit, or None where none does.

    Args:
        config: the configuration.
        request: of the actor.
        found: its footprint.
        gpu: bytes of its GPU.
        room: bytes of it that the actor may take.
    """
    if found.batch is None:
        return _of_engine(config, request, found, gpu, room)
    for group in TRIED.get(request.actor, (((),),)):
        helpful = [" with ".join(one) for settings in group if (one := _with_batch(config, request, settings, room))]
        if helpful:
            return ", or ".join(helpful)
    return None


def _with_batch(config: Config, request: ResourceRequest, settings: Sequence[str], room: int) -> Sequence[str]:
    """The settings and, where it must be smaller, the largest batch that fits; nothing where none does.

    What a pass needs is taken to grow evenly from one row to all of them: it never is more than that.
    """
    try:
        changed = change_config(config, settings)
    except UserError:  # they do not go with the others
        return ()
    if settings and changed == config:
        return ()
    whole = footprint(changed, request, None)
    assert whole is not None and whole.batch is not None
    key, rows, each = whole.batch
    if whole.total <= room:
        return settings
    single = footprint(change_config(changed, [f"{key}={each}"]), request, None)
    assert single is not None
    if single.total > room:
        return ()
    rows = 1 + (room - single.total) * (rows - 1) // (whole.total - single.total)
    return (*settings, f"{key}={rows * each}")


def _of_engine(config: Config, request: ResourceRequest, found: Footprint, gpu: int, room: int) -> str | None:
    engine = functools.reduce(getattr, request.section.split("."), config)
    assert isinstance(engine, EngineConfig)
    if engine.kv_cache_gib is None:
        setting = f"{request.section}.gpu_memory_utilization={math.floor(100 * room / gpu) / 100:g}"
    else:
        left = room - (found.total - int(engine.kv_cache_gib * GIB))
        setting = f"{request.section}.kv_cache_gib={math.floor(10 * left / GIB) / 10:g}"
    try:
        tried = footprint(change_config(config, [setting]), request, gpu)
    except UserError:  # there is no room at all
        return None
    return None if tried is None or tried.shortage else setting
