"""The Ray Data plans of labelling.

They take ids of blocks that are still to be labelled, whose rows the workers read themselves. A block is the unit of
work: the last stage of a plan writes it as a part of the stage folder and sends only counts to the driver, which holds
no row of it.

    labelling   ids -> FactExtraction (OpenAI client) -> Verifier (vLLM) -> counts
    second pass ids of parts -> SecondVerifier (vLLM) -> counts

While a block is verified the next ones are extracted.
"""

from collections.abc import Iterator

import ray
from ray.data import ActorPoolStrategy

from actors.engine.block_counts import BlockCounts, until_fatal
from actors.engine.blocks import ONE_BLOCK
from actors.engine.start import announce_engines
from actors.labelling.block_ids import block_ids
from actors.labelling.coordinator import start_coordinator
from actors.labelling.extraction import Endpoint, FactExtraction
from actors.labelling.second_verifier import SecondVerifier
from actors.labelling.verifier import Verification, Verifier
from actors.metrics.count_down import count_down
from fgaif_ray.calls.answers import model_identity
from fgaif_ray.cluster import resources
from fgaif_ray.config import Config
from fgaif_ray.feedback.pending import OPEN_BLOCKS, Pending


def verify_again(verification: Verification, parts: list[tuple[str, int]]) -> Iterator[BlockCounts]:
    """Have the second verifier go over labelled parts, given with their numbers of rows; yields the counts of each
    finished one.

    Raises:
        UserError: an engine does not read prompts as the verifier's processor makes them.
    """
    second = verification.config.second_verifier
    assert second is not None
    request = resources.verifier(second, second=True)
    announce_engines("verify again", min(second.engines, len(parts)))
    dataset = block_ids(len(parts), request).map_batches(
        SecondVerifier,
        fn_constructor_kwargs={"verification": verification, "parts": ray.put([part for part, _ in parts])},
        **ONE_BLOCK,
        compute=ActorPoolStrategy(size=min(second.engines, len(parts))),
        **request.options(),
    )
    counts = until_fatal(map(BlockCounts.from_row, dataset.iter_rows()))
    yield from count_down("second_verifier", sum(rows for _, rows in parts), counts)


def label_responses(
    config: Config, pending: Pending, endpoint: Endpoint, verification: Verification
) -> Iterator[BlockCounts]:
    """Label the pending responses; yields the counts of each finished block (see ``Verifier``).

    The limits and the budget of ``label.extractor`` hold for all extraction workers together. Once counts say why the
    job has to stop, no further call is made; those under way come to their end.
    """
    label = config.label
    extractor = label.extractor
    address, coordinator = start_coordinator(extractor, config.run.dir)
    extraction = {
        "config": extractor,
        "endpoint": endpoint,
        "run": config.run.dir,
        "coordinator": address,
        "places": ray.put(pending.places),
        "identity": model_identity(extractor.model, extractor.serve_model),
        "fact_types": config.run.types,
        "language": config.data.language,
    }
    request = resources.fact_extraction(config)
    announce_engines("label", min(label.verifier.engines, pending.blocks))
    dataset = (
        # Block ids: a driver that handed out the places themselves would hold an object for each.
        block_ids(pending.blocks, request)
        .map_batches(
            FactExtraction,
            fn_constructor_kwargs=extraction,
            **ONE_BLOCK,
            compute=ActorPoolStrategy(
                size=min(extractor.workers, pending.blocks), max_concurrent_calls_per_actor=OPEN_BLOCKS
            ),
            **request.options(),
        )
        .map_batches(
            Verifier,
            fn_constructor_kwargs={"verification": verification},
            **ONE_BLOCK,
            compute=ActorPoolStrategy(size=min(label.verifier.engines, pending.blocks)),
            **resources.verifier(label.verifier).options(),
        )
    )
    try:
        for counts in count_down("label", pending.rows, map(BlockCounts.from_row, dataset.iter_rows())):
            if counts.fatal is not None:  # of a verifier: extraction workers have told the coordinator themselves
                coordinator.stop.remote(counts.fatal)
            yield counts
    finally:
        ray.kill(coordinator)
