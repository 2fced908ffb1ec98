"""How labelling grows with nodes, as ratios that are measured in one run.

    python -m benchmarks.scale [--nodes 1 2 4 8] [--blocks N]

The plan of `jobs.label` on Ray nodes that are processes of this machine: a block's facts come from an endpoint that
answers after 100 ms, and its rows take a verifier of constant time, which waits instead of computing. What is measured
is everything else: Ray Data's scheduling, the call coordinator that all workers share, and I/O. The
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch
from uuid import uuid4

import psutil
import pyarrow as pa
from PIL import Image

from actors.engine.blocks import unseal
from actors.labelling.fact_checker import Findings, YesProbability
from actors.labelling.verifier import Verification, Verifier
from benchmarks.endpoint import Endpoint
from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.feedback.label_sources import feedback_stages
from fgaif_ray.records import RESPONSES_SCHEMA

if TYPE_CHECKING:
    from actors.labelling.fact_checker import FactQuestion

NODES: Final = (1, 2, 4, 8)
LATENCY_S: Final = 0.1
VERIFIER_S: Final = 0.08
"""Per row; a 13B model on one GPU takes about as long for the facts of a response."""
BLOCK: Final = 25
BLOCKS_PER_NODE: Final = 16
CALLS_IN_FLIGHT: Final = 16
"""Per extraction worker: more than one verifier keeps up with."""
START_S: Final = 300.0
OBJECT_STORE: Final = 100 * 1024**2
DRIVER: Final = "driver"
PARTS_OF_TITLES: Final = {
    "call coordinator": "ray::CallCoordinatorActor",
    "extraction workers": "(FactExtraction)",
    "verifiers": "Verifier",
    "control store": "gcs_server",
    "raylets": "raylet/raylet",
}
"""What the titles of the processes of a role hold."""
ROLES: Final = (DRIVER, *PARTS_OF_TITLES)
ENVIRONMENT: Final = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_agent_register_timeout_ms": "300000"}


@dataclass(frozen=True, slots=True)
class Block:
    """What a verifier did: seconds of the machine's monotonic clock, which all processes share."""

    worker: str
    begin: float
    end: float
    rows: int


class ConstantChecker:
    """Says yes to every fact after a time that the number of rows alone decides."""

    def ask(self, questions: Sequence["FactQuestion"], images: dict[str, Any]) -> Findings:
        """As ``FactChecker.ask``; ``images`` has one for each row."""
        time.sleep(VERIFIER_S * len(images))
        return Findings(answers={question: YesProbability(0.9, 1.0) for question in questions})


class ConstantVerifier(Verifier):
    """The job's verifier without an engine. It notes its blocks, and takes the first one when all verifiers are up:
    on one machine they start one after the other, and the early ones would have labelled everything by then.
    """

    def __init__(self, verification: Verification) -> None:
        with patch("actors.labelling.verifier.FactChecker", lambda *_: ConstantChecker()):
            super().__init__(verification)
        self._worker = uuid4().hex
        self._log = Path(verification.config.verifier.model, f"{self._worker}.jsonl")
        self._log.touch()
        deadline = time.monotonic() + START_S
        while len(list(self._log.parent.glob("*.jsonl"))) < verification.config.verifier.engines:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the verifiers are not all up after {START_S:.0f} s")
            time.sleep(0.05)

    def __call__(self, sealed: pa.Table) -> pa.Table:
        """As ``Verifier``."""
        begin = time.monotonic()
        counts = super().__call__(sealed)
        block = Block(self._worker, begin, time.monotonic(), unseal(sealed).num_rows)
        with open(self._log, "a") as log:
            log.write(json.dumps(asdict(block)) + "\n")
        return counts


class ProcessorTimes:
    """Processor time of this process and those that it has started, by role; one that has ended keeps what it took."""

    def __init__(self) -> None:
        self._by_process: dict[int, tuple[str, float]] = {}

    def seconds(self) -> dict[str, float]:
        """Of each of ``ROLES`` so far."""
        own = psutil.Process()
        self._note(DRIVER, own)
        for process in own.children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                title = " ".join(process.cmdline())
                role = next((role for role, part in PARTS_OF_TITLES.items() if part in title), None)
                if role is not None:
                    self._note(role, process)
        taken = dict.fromkeys(ROLES, 0.0)
        for role, seconds in self._by_process.values():
            taken[role] += seconds
        return taken

    def _note(self, role: str, process: psutil.Process) -> None:
        times = process.cpu_times()
        self._by_process[process.pid] = (role, times.user + times.system)


@dataclass(frozen=True)
class Measured:
    """Labelling on so many nodes."""

    rows_per_second: float
    """While all verifiers work, see ``rate_of``."""
    driver_mib: float
    """Peak resident memory that the driver gained."""
    processor_ms: dict[str, float]
    """Processor time per row of each of ``ROLES``, all its processes together, from the first block that came in."""

    def describe(self, nodes: int) -> str:
        """A line for people."""
        times = ", ".join(f"{role} {value:.2f}" for role, value in self.processor_ms.items())
        return (
            f"{self.rows_per_second:.1f} of {nodes / VERIFIER_S:.1f} rows/s, driver +{self.driver_mib:.0f} MiB; "
            f"processor time in ms per row: {times}"
        )


def rate_of(blocks: Sequence[Block]) -> float:
    """Rows per second from the moment that the last verifier begins its first block to the moment that the first one
    ends its last: what comes before and after is start and end, of which a long job has no more than a short one.

    Raises:
        ValueError: the verifiers never worked all at a time.
    """
    by_worker: dict[str, list[Block]] = {}
    for block in blocks:
        by_worker.setdefault(block.worker, []).append(block)
    begin = max(min(block.begin for block in own) for own in by_worker.values())
    end = min(max(block.end for block in own) for own in by_worker.values())
    if end <= begin:
        raise ValueError("the verifiers never worked at the same time: more rows are needed")
    rows = 0.0
    for block in blocks:
        within = max(0.0, min(block.end, end) - max(block.begin, begin))
        rows += block.rows * within / (block.end - block.begin)
    return rows / (end - begin)


@contextmanager
def local_nodes(count: int) -> Iterator[str]:
    """A head without work, and nodes that each have room for an extraction worker and a verifier, and no CPU to spare;
    gives the address.
    """
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=0, include_dashboard=False, object_store_memory=OBJECT_STORE, temp_dir=folder)
            for _ in range(count):
                cluster.add_node(num_cpus=2, object_store_memory=OBJECT_STORE)
            cluster.wait_for_nodes()
            yield cluster.address
        finally:
            cluster.shutdown()


def make_run(folder: Path, rows: int, nodes: int, endpoint: str) -> Config:
    """Responses of two segments each, no two of them the same."""
    images, logs = folder / "images", folder / "logs"
    images.mkdir(parents=True)
    logs.mkdir()
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
                "verifier": {"model": str(logs), "engines": nodes, "engine": {"num_cpus": 1, "num_gpus": 0}},
            },
            "rewards": {"backbone": str(logs)},
        }
    )


def label_on(nodes: int, blocks_per_node: int, folder: Path) -> Measured:
    """Label on so many nodes."""
    import ray
    from pydantic import SecretStr

    from actors.labelling import plan as annotators
    from actors.labelling.extraction import Endpoint as ExtractionEndpoint
    from fgaif_ray.audit.control_items import ControlItemPool
    from jobs import label

    with Endpoint(LATENCY_S) as url, local_nodes(nodes) as address:
        logs = folder / "logs"
        config = make_run(folder, nodes * blocks_per_node * BLOCK, nodes, url)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        try:
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = context.print_on_execution_start = False
            logging.getLogger("ray.data").setLevel(logging.WARNING)
            for stage in feedback_stages(config):
                stage.begin()
            labelled, rejected = [stage.partial for stage in feedback_stages(config)]
            thresholds = dict.fromkeys(config.run.type_names, 0.5)
            verification = Verification(
                config.label, labelled, rejected, thresholds, None, ControlItemPool((), (), 0), config.run.types
            )
            before = peak = psutil.Process().memory_info().rss
            came, times = 0, ProcessorTimes()
            marks: list[tuple[int, dict[str, float]]] = []
            with patch.object(annotators, "Verifier", ConstantVerifier):
                asked = ExtractionEndpoint(url, SecretStr("key"))
                for counts in annotators.label_responses(config, label.pending_responses(config), asked, verification):
                    assert counts.fatal is None and not counts.rejected, counts
                    came += counts.done
                    marks.append((came, times.seconds()))
                    peak = max(peak, psutil.Process().memory_info().rss)
        finally:
            ray.shutdown()
    blocks = [Block(**json.loads(line)) for log in logs.glob("*.jsonl") for line in log.read_text().splitlines()]
    assert sum(block.rows for block in blocks) == nodes * blocks_per_node * BLOCK
    (first, taken), (last, in_the_end) = marks[0], marks[-1]
    processor_ms = {role: 1e3 * (in_the_end[role] - taken[role]) / (last - first) for role in ROLES}
    return Measured(rate_of(blocks), (peak - before) / 2**20, processor_ms)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", nargs="+", type=int, default=NODES, help="numbers of nodes; 1 comes first")
    parser.add_argument("--blocks", type=int, default=BLOCKS_PER_NODE, help=f"of {BLOCK} rows, for each node")
    options = parser.parse_args(arguments)
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    found: dict[int, Measured] = {}
    with tempfile.TemporaryDirectory() as folder:
        for nodes in sorted({1, *options.nodes}):
            found[nodes] = label_on(nodes, options.blocks, Path(folder) / str(nodes))
            print(f"{nodes} nodes: {found[nodes].describe(nodes)}", flush=True)
    single = found[1].rows_per_second
    figures = {f"efficiency_{nodes}": one.rows_per_second / (nodes * single) for nodes, one in found.items()}
    del figures["efficiency_1"]
    figures["overhead_ms_per_row"] = 1e3 * (1 / single - VERIFIER_S)
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


if __name__ == "__main__":
    main()
