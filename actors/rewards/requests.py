"""Preparation of the items of one request, and their division into lists that are scored together."""

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from actors.rewards.preparers import PreparedItem, Preparers, UnpreparedItem
from fgaif_ray.errors import ItemError
from fgaif_ray.rewards.scoring import ScoringBatch, make_batch
from fgaif_ray.serving.wire import MAX_REQUEST_PIXELS

TogetherResult = TypeVar("TogetherResult")

LIST_PIXELS: Final = 64 << 20
"""Pixels of the images of a list that a reward model scores at once, unless it is of one item."""


async def together(work: Sequence[Coroutine[Any, Any, TogetherResult]]) -> list[TogetherResult]:
    """Do several things at once; when one of them fails, or nobody waits any more, the others are given up."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def prepare_request(
    preparers: Preparers, makers: Sequence[Callable[[], UnpreparedItem]], *, untrusted: bool
) -> list[PreparedItem | ItemError]:
    """Prepare the items of a request; not more of them at a time than there are processes, so that others get a turn.

    Args:
        preparers: the processes.
        makers: make the items as they came, or raise ItemError.
        untrusted: whether images are looked at, each once, and whether the first item that fails ends the request.

    Returns:
        In order; up to the first one that has failed, where that ends the request.

    Raises:
        RuntimeError: the processes do not start.
    """
    outcomes: list[PreparedItem | ItemError | None] = [None] * len(makers)
    pixels: dict[bytes, int] = {}
    waiting = iter(range(len(makers)))
    failed = False

    async def prepare(item: UnpreparedItem) -> PreparedItem:
        if not untrusted:
            prepared, _ = await preparers.prepare(item, ())
            return prepared
        images = [image for image in item.images if isinstance(image, bytes)]  # paths are not the caller's
        files = [file for file in dict.fromkeys(images) if file not in pixels]
        prepared, found = await preparers.prepare(item, files)
        pixels.update(zip(files, found, strict=True))
        if sum(pixels.values()) > MAX_REQUEST_PIXELS:
            message = f"the images of the request have more than {MAX_REQUEST_PIXELS} pixels together: send fewer items"
            raise ItemError("image_too_large", message)
        return replace(prepared, pixels=sum(pixels[file] for file in images))

    async def take_turns() -> None:
        nonlocal failed
        for index in waiting:
            try:
                outcomes[index] = await prepare(makers[index]())
            except ItemError as error:
                outcomes[index] = error
                failed = untrusted
            if failed:
                return

    await together([take_turns() for _ in range(min(preparers.count, len(makers)))])
    done = [outcome for outcome in outcomes if outcome is not None]
    # Every item before one that has failed was begun before it.
    first = next((place for place, outcome in enumerate(done) if isinstance(outcome, ItemError)), len(done))
    return done[: first + 1] if untrusted else done


def make_lists(items: Sequence[PreparedItem], largest: int) -> list[tuple[list[int], ScoringBatch]]:
    """Divide items into lists for the reward models; items of like length come together, so that little is padding.

    Args:
        items: of a request.
        largest: items of a list. A list whose images have many pixels holds fewer, and counts for as many.

    Returns:
        The places of a list's items, and the list.
    """
    order = sorted(range(len(items)), key=lambda index: len(items[index].response.text))
    lists: list[list[int]] = []
    pixels = 0
    for index in order:
        pixels += items[index].pixels
        if not lists or len(lists[-1]) == largest or pixels > LIST_PIXELS:
            lists.append([])
            pixels = items[index].pixels
        lists[-1].append(index)
    return [(places, _batch([items[index] for index in places], largest)) for places in lists]


def _batch(items: Sequence[PreparedItem], largest: int) -> ScoringBatch:
    pixels = sum(item.pixels for item in items)
    size = min(largest, math.ceil(largest * pixels / LIST_PIXELS))
    return make_batch([(item.images, item.prompt, item.response.segments) for item in items], size)
