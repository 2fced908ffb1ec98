"""A stream read ahead: what has come while its reader was busy comes together."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final, TypeVar

StreamItem = TypeVar("StreamItem")

MOST_AHEAD: Final = 1024
"""Items that are read ahead; then the source has to wait."""


async def in_batches(source: AsyncIterator[StreamItem]) -> AsyncIterator[list[StreamItem]]:
    """Yield what has come since the last batch, at least one item; an error of the source comes after its items."""
    queue: asyncio.Queue[StreamItem | None] = asyncio.Queue(MOST_AHEAD)
    failures: list[Exception] = []

    async def read() -> None:
        try:
            async for item in source:
                await queue.put(item)
        except Exception as error:
            failures.append(error)
        await queue.put(None)

    task = asyncio.create_task(read())
    try:
        over = False
        while not over:
            batch = [await queue.get()]
            while not queue.empty():
                batch.append(queue.get_nowait())
            over = batch[-1] is None
            items = [item for item in batch if item is not None]
            if items:
                yield items
        if failures:
            raise failures[0]
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
