"""The Ray Data plan of sampling: tasks -> Sampler (vLLM) -> counts."""

from collections.abc import Iterator

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from actors.engine.block_counts import BlockCounts, until_fatal
from actors.engine.blocks import ONE_BLOCK, seal
from actors.engine.start import announce_engines
from actors.metrics.count_down import count_down
from actors.sampling.sampler import Sampler
from fgaif_ray.cluster import resources
from fgaif_ray.config import Config


def sample_responses(config: Config, blocks: list[pa.Table], partial: str) -> Iterator[BlockCounts]:
    """Sample a response to every task; yields the counts of each finished block (see ``Sampler``).

    Raises:
        UserError: an engine does not read prompts as the policy's processor makes them.
    """
    announce_engines("sample", min(config.sample.engines, len(blocks)))
    dataset = ray.data.from_arrow([seal(block) for block in blocks]).map_batches(
        Sampler,
        fn_constructor_kwargs={"config": config, "partial": partial},
        **ONE_BLOCK,
        compute=ActorPoolStrategy(size=min(config.sample.engines, len(blocks))),
        **resources.sampler(config).options(),
    )
    counts = until_fatal(map(BlockCounts.from_row, dataset.iter_rows()))
    yield from count_down("sample", sum(len(block) for block in blocks), counts)
