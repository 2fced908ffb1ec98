"""The Ray Data plans of sampling and labelling.

Both take blocks of what is still to be done: tables of tasks, or numbers of blocks whose rows the workers read
themselves. A block is the unit of work: the last stage of a plan writes it as a part of the stage folder and sends only
counts to the driver, which holds no row of it.

    sampling    tasks -> Sampler (vLLM) -> counts
    labelling   numbers -> FactExtraction (OpenAI client) -> Verifier (vLLM) -> counts
    once more   numbers of parts -> SecondVerifier (vLLM) -> counts

While a block is verified the next ones are extracted.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from actors.block_numbers import block_numbers
from actors.call_desk import start_call_desk
from actors.extraction import Endpoint, FactExtraction
from actors.sampler import Sampler
from actors.second_verifier import SecondVerifier
from actors.stage_metrics import count_down
from actors.verifier import Verification, Verifier
from fgaif_ray import resources
from fgaif_ray.config import Config
from fgaif_ray.feedback.answers import model_identity
from fgaif_ray.feedback.pending import OPEN_BLOCKS, Pending


def blocks_of(rows: list[dict[str, Any]], size: int, schema: pa.Schema) -> list[pa.Table]:
    """Rows as tables of at most ``size`` rows."""
    return [pa.Table.from_pylist(rows[start : start + size], schema=schema) for start in range(0, len(rows), size)]


def sample_responses(config: Config, blocks: list[pa.Table], partial: str) -> Iterator[dict[str, Any]]:
    """Sample a response to every task; yields the counts of each finished block (see ``Sampler``)."""
    dataset = ray.data.from_arrow(blocks).map_batches(
        Sampler,
        fn_constructor_kwargs={"config": config, "partial": partial},
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=min(config.sample.engines, len(blocks))),
        **resources.sampler(config).options(),
    )
    yield from count_down("sample", sum(len(block) for block in blocks), dataset.iter_rows())


def verify_again(verification: Verification, parts: list[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """Have the second verifier go over labelled parts, given with their numbers of rows; yields the counts of each
    finished one.
    """
    second = verification.config.second_verifier
    assert second is not None
    request = resources.verifier(second, second=True)
    dataset = block_numbers(len(parts), request).map_batches(
        SecondVerifier,
        fn_constructor_kwargs={"verification": verification, "parts": ray.put([part for part, _ in parts])},
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=min(second.engines, len(parts))),
        **request.options(),
    )
    yield from count_down("second_verifier", sum(rows for _, rows in parts), dataset.iter_rows())


def label_responses(
    config: Config, pending: Pending, endpoint: Endpoint, verification: Verification
) -> Iterator[dict[str, Any]]:
    """Label the responses that are left; yields the counts of each finished block (see ``Verifier``).

    The limits and the budget of ``label.extractor`` hold for all extraction workers together.
    """
    label = config.label
    extractor = label.extractor
    address, desk = start_call_desk(extractor, config.run.dir)
    extraction = {
        "config": extractor,
        "endpoint": endpoint,
        "run": config.run.dir,
        "desk": address,
        "places": ray.put(pending.places),
        "identity": model_identity(extractor.model, extractor.serve_model),
    }
    request = resources.fact_extraction(config)
    dataset = (
        # Numbers of blocks: a driver that handed out the places themselves would hold an object for each.
        block_numbers(pending.blocks, request)
        .map_batches(
            FactExtraction,
            fn_constructor_kwargs=extraction,
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                size=min(extractor.workers, pending.blocks), max_concurrent_calls_per_actor=OPEN_BLOCKS
            ),
            **request.options(),
        )
        .map_batches(
            Verifier,
            fn_constructor_kwargs={"verification": verification},
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=min(label.verifier.engines, pending.blocks)),
            **resources.verifier(label.verifier).options(),
        )
    )
    try:
        yield from count_down("label", pending.rows, dataset.iter_rows())
    finally:
        ray.kill(desk)
