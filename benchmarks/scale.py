"""How labelling grows with nodes, as ratios that are measured in one run.

    python -m benchmarks.scale [--nodes 1 2 4 8] [--quick]

The plan of `jobs.label` on Ray nodes that are processes of this machine: a block's facts come from an endpoint that
answers after 100 ms, and its rows take a verifier of constant time, which waits instead of computing. What is measured
is everything else: Ray Data's scheduling, the call desk that all workers share, and what they read and write. The
number of rows grows with the nodes. The last line is one JSON object:

* ``efficiency_N``: rows per second on N nodes, over N times those of one node;
* ``overhead_ms_per_row``: time per row on one node beyond the verifier's own.
"""

import argparse
import json
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import psutil
import pyarrow as pa
from PIL import Image

from actors.fact_checker import Answer, Findings
from actors.verifier import Verification, Verifier
from benchmarks.endpoint import Endpoint
from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.line_log import LineLog, read_lines
from fgaif_ray.records import FACT_TYPES, RESPONSES_SCHEMA

if TYPE_CHECKING:
    from actors.fact_checker import Question

NODES: Final = (1, 2, 4, 8)
LATENCY_S: Final = 0.1
VERIFIER_S: Final = 0.08
"""Per row; a 13B model on one GPU takes about as long for the facts of a response."""
BLOCK: Final = 25
BLOCKS_PER_NODE: Final = 12
ENDS: Final = "ends"
CALLS_IN_FLIGHT: Final = 16
"""Per extraction worker: more than one verifier keeps up with."""
OBJECT_STORE: Final = 100 * 1024**2
ENVIRONMENT: Final = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_agent_register_timeout_ms": "300000"}


class ConstantChecker:
    """Says yes to every fact after a time that the number of rows alone decides."""

    def ask(self, questions: Sequence["Question"], images: dict[str, Any]) -> Findings:
        """As ``FactChecker.ask``; ``images`` has one for each row."""
        time.sleep(VERIFIER_S * len(images))
        return Findings(answers={question: Answer(0.9, 1.0) for question in questions})


class ConstantVerifier(Verifier):
    """The job's verifier without an engine, which notes when it has done a block."""

    def __init__(self, verification: Verification) -> None:
        with patch("actors.verifier.FactChecker", lambda _: ConstantChecker()):
            super().__init__(verification)
        self._ends = LineLog(verification.partial, ENDS)
        self._name = uuid.uuid4().hex

    def __call__(self, extracted: pa.Table) -> pa.Table:
        counts = super().__call__(extracted)
        self._ends.append({"worker": self._name, "end": time.time(), "rows": extracted.num_rows})
        return counts


@dataclass(frozen=True)
class Measured:
    """Labelling on so many nodes."""

    rows_per_second: float
    """While all of them work: from the last worker's first block to the first worker's last one."""
    driver_mib: float
    """Peak resident memory that the driver gained."""


@contextmanager
def local_nodes(count: int) -> Iterator[str]:
    """A head without work, and nodes for an extraction worker, a verifier and a reader each; gives the address."""
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=0, include_dashboard=False, object_store_memory=OBJECT_STORE, temp_dir=folder)
            for _ in range(count):
                cluster.add_node(num_cpus=3, object_store_memory=OBJECT_STORE)
            cluster.wait_for_nodes()
            yield cluster.address
        finally:
            cluster.shutdown()


def make_run(folder: Path, rows: int, nodes: int, endpoint: str) -> Config:
    """Responses of two sub-sentences each, no two of them the same."""
    folder.mkdir()
    images = folder / "images"
    images.mkdir()
    stage = storage.Stage(str(folder), "responses", "f")
    stage.begin()
    made = []
    for index in range(rows):
        path = images / f"{index}.png"
        Image.new("RGB", (8, 8), (index % 256, index // 256, 0)).save(path)
        made.append(
            {
                "sample_id": str(index), "image": str(path), "image_sha256": str(index),
                "prompt": "Describe this image.",
                "response": f"There is dog number {index}. Cat {index} is black.", "token_ids": None,
                "finish_reason": "stop", "model": "policy",
            }
        )  # fmt: skip
    storage.write_part(stage.partial, made, RESPONSES_SCHEMA)
    stage.publish({"rows": rows})
    return Config.model_validate(
        {
            "run": {"dir": str(folder)},
            "data": {"path": str(images)},
            "policy": {"model": "policy"},
            "label": {
                "batch_size": BLOCK,
                "extractor": {
                    "base_url": endpoint,
                    "model": "m",
                    "workers": nodes,
                    "concurrency": CALLS_IN_FLIGHT,
                    "requests_per_minute": 1e9,
                },
                "verifier": {"model": "verifier", "engines": nodes, "engine": {"num_cpus": 1, "num_gpus": 0}},
            },
            "rewards": {"backbone": "verifier"},
        }
    )


def label_on(nodes: int, blocks_per_node: int, folder: Path) -> Measured:
    """Run the plan of the job."""
    import ray
    from pydantic import SecretStr

    from actors import annotators
    from actors.extraction import Endpoint as ExtractionEndpoint
    from fgaif_ray.feedback.canaries import CanaryPool
    from jobs import label

    with Endpoint(LATENCY_S) as url, local_nodes(nodes) as address:
        config = make_run(folder, nodes * blocks_per_node * BLOCK, nodes, url)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        try:
            ray.data.DataContext.get_current().enable_progress_bars = False
            for stage in label.stages_of(config):
                stage.begin()
            folders = [stage.partial for stage in label.stages_of(config)]
            thresholds = dict.fromkeys(FACT_TYPES, 0.5)
            verification = Verification(config.label, folders[0], folders[1], thresholds, None, CanaryPool((), (), 0))
            before = psutil.Process().memory_info().rss
            peak = before
            with patch.object(annotators, "Verifier", ConstantVerifier):
                asked = ExtractionEndpoint(url, SecretStr("key"))
                for counts in annotators.label_responses(config, label.pending_responses(config), asked, verification):
                    assert counts["fatal"] is None and not counts["rejected"], counts
                    peak = max(peak, psutil.Process().memory_info().rss)
        finally:
            ray.shutdown()
    return Measured(rate_of_all([line for _, line in read_lines(folders[0], ENDS)]), (peak - before) / 2**20)


def rate_of_all(ends: Sequence[dict[str, Any]]) -> float:
    """Rows per second of all workers together, while none of them is starting or out of work.

    Args:
        ends: of blocks: ``worker``, ``end`` in seconds and ``rows``.

    Raises:
        ValueError: there is no such time.
    """
    by_worker: dict[str, list[float]] = {}
    for one in ends:
        by_worker.setdefault(one["worker"], []).append(one["end"])
    begin, end = max(map(min, by_worker.values())), min(map(max, by_worker.values()))
    if end <= begin:
        raise ValueError("the workers were never busy at the same time: give more blocks a node")
    # Blocks that a worker had half done at either end are counted by the half on average.
    return sum(one["rows"] for one in ends if begin < one["end"] <= end) / (end - begin)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", nargs="+", type=int, default=NODES, help="numbers of nodes; 1 comes first")
    parser.add_argument("--quick", action="store_true", help="half of the rows")
    options = parser.parse_args(arguments)
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    found: dict[int, Measured] = {}
    with tempfile.TemporaryDirectory() as folder:
        for nodes in sorted({1, *options.nodes}):
            blocks = BLOCKS_PER_NODE // 2 if options.quick else BLOCKS_PER_NODE
            found[nodes] = label_on(nodes, blocks, Path(folder) / str(nodes))
            print(
                f"{nodes} nodes: {found[nodes].rows_per_second:.1f} of {nodes / VERIFIER_S:.1f} rows/s, driver "
                f"+{found[nodes].driver_mib:.0f} MiB"
            )
    single = found[1].rows_per_second
    figures = {f"efficiency_{nodes}": one.rows_per_second / (nodes * single) for nodes, one in found.items()}
    del figures["efficiency_1"]
    figures["overhead_ms_per_row"] = 1e3 * (1 / single - VERIFIER_S)
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


if __name__ == "__main__":
    main()
