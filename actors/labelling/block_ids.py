"""Block ids as a dataset: the start of a plan whose workers read the rows of a block themselves.

`ray.data.range` would do, but its tasks ask for a CPU each: if the actors of a plan fill their nodes, none is left,
and all would wait forever.
"""

from functools import partial
from typing import Any, Final

import pyarrow as pa
import ray
from ray.data import Dataset, Datasource, ReadTask
from ray.data.block import BlockMetadata

from fgaif_ray.cluster import resources
from fgaif_ray.cluster.resources import ResourceRequest

COLUMN: Final = "id"
SCHEMA: Final = pa.schema([(COLUMN, pa.int64())])
AT_A_TIME: Final = 4
"""Tasks that make ids. They ask for no CPU, so that nothing else holds Ray back from a process for each: 109 were
counted for 600 blocks. With four, 3,000 blocks passed two stages that do nothing in 96 s on two busy cores: 1,000
responses a second."""


def block_ids(count: int, consumer: ResourceRequest) -> Dataset:
    """A dataset of the column `id`, int64: 0 to ``count`` - 1, each as a block.

    Args:
        count: of blocks, at least one.
        consumer: request of the actors that take the ids, which are made on the same nodes.
    """
    options = resources.block_ids(consumer).options()
    numbers: Dataset = ray.data.read_datasource(
        BlockIds(count), override_num_blocks=count, concurrency=min(AT_A_TIME, count), **options
    )
    return numbers


class BlockIds(Datasource):
    """The datasource of ``block_ids``."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def estimate_inmemory_data_size(self) -> int:
        """Return the bytes of all ids."""
        return 8 * self._count

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:  # noqa: ARG002
        """Return a task for each id, whatever the ``parallelism``."""
        metadata = BlockMetadata(num_rows=1, size_bytes=8, input_files=None, exec_stats=None)
        return [ReadTask(partial(_read, number), metadata, schema=SCHEMA) for number in range(self._count)]


def _read(number: int) -> list[pa.Table]:
    return [pa.table({COLUMN: [number]}, schema=SCHEMA)]
